# SPDX-License-Identifier: Apache-2.0
"""Losses: how far the outputs of a network are from what they should be.

The errors that start the backward pass have the same bits on every machine; the loss itself is only
reported, and there the C library may round as it likes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ConfigError, TrainerError
from fedlearn.model import Model
from fedlearn.trainer.powers import STEP_BITS, TABLE_BITS, negative_exponential, steps

_PROBABILITY_BITS = 15
_PROBABILITY = np.float32(2.0**-_PROBABILITY_BITS)
_ONE = 1 << TABLE_BITS


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a loss says of a batch.

    `errors` float32 (N, C) is the gradient of the summed loss by the outputs; `loss` the summed
    loss; `hits` the summed accuracy (of one sample 0..1), None where there is none.
    """

    errors: NDArray[np.float32]
    loss: float
    hits: float | None


class Loss(ABC):
    """One loss. `absorbed` is the last operator whose backward pass is part of it."""

    absorbed: str | None = None

    @abstractmethod
    def judge(
        self, outputs: NDArray[np.float32], labels: NDArray[Any], *, count: bool = True
    ) -> Judgement:
        """Judge outputs (N, C) in real units by the labels of a `Dataset` for this loss.

        Without `count` there are no hits: a step of training needs none.
        """


class SoftmaxCrossEntropy(Loss):
    """One class a sample: labels int64 (N,), in nats.

    Probabilities have 15 bits, errors p - y are exact multiples of 2^-15 (times the class's
    weight).
    """

    absorbed = "SOFTMAX"

    def __init__(self, class_weights: Sequence[float] = ()) -> None:
        self._weights = np.array(class_weights, np.float32)

    def judge(
        self, outputs: NDArray[np.float32], labels: NDArray[Any], *, count: bool = True
    ) -> Judgement:
        """Errors are p - one_hot(label)."""
        rows = np.arange(len(outputs))
        distance = steps(outputs.max(axis=1, keepdims=True) - outputs)
        powers = negative_exponential(distance)
        total = powers.sum(axis=1, keepdims=True)
        # Rounded, so that a step of doubt falls to neither side.
        shares = ((powers << _PROBABILITY_BITS) + (total >> 1)) // total
        shares[rows, labels] -= 1 << _PROBABILITY_BITS
        errors = shares.astype(np.float32) * _PROBABILITY
        # The true loss of a class beyond the table's reach is its distance.
        far = distance[rows, labels] / float(1 << STEP_BITS)
        losses = (far + np.log2(total[:, 0] / float(_ONE))) / log2(np.e)
        if self._weights.size:
            factors = self._weights[labels]
            errors *= factors[:, None]
            losses = losses * factors
        hits = int((outputs.argmax(axis=1) == labels).sum()) if count else None
        return Judgement(errors, float(losses.sum()), hits)


class SigmoidCrossEntropy(Loss):
    """Any of C labels a sample: labels 0 or 1, (N, C); in nats, the sum over the labels.

    A sample's accuracy is the share of its labels that are right. Weights of classes are factors
    of the present labels' losses.
    """

    absorbed = "LOGISTIC"

    def __init__(self, class_weights: Sequence[float] = ()) -> None:
        self._weights = np.array(class_weights, np.float32)

    def judge(
        self, outputs: NDArray[np.float32], labels: NDArray[Any], *, count: bool = True
    ) -> Judgement:
        """Errors are sigmoid(output) - label, multiples of 2^-15."""
        powers = negative_exponential(steps(np.abs(outputs)))
        total = powers + _ONE
        likely = ((_ONE << _PROBABILITY_BITS) + (total >> 1)) // total
        shares = np.where(outputs >= 0, likely, (1 << _PROBABILITY_BITS) - likely)
        present = labels.astype(bool)
        errors = (shares - (present.astype(np.int64) << _PROBABILITY_BITS)).astype(np.float32)
        errors *= _PROBABILITY
        wrong = np.where(present, -outputs, outputs).astype(np.float64)
        losses = np.maximum(wrong, 0) + np.log1p(np.exp(-np.abs(wrong)))
        if self._weights.size:
            factors = np.where(present, self._weights, np.float32(1))
            errors *= factors
            losses = losses * factors
        hits = float(((outputs >= 0) == present).mean(axis=1).sum()) if count else None
        return Judgement(errors, float(losses.sum()), hits)


class MeanSquaredError(Loss):
    """Real values: the mean over a sample's outputs of (output - label)^2.

    Labels are float32 (N, C), or an autoencoder's own int8 inputs with this scale and zero point.
    """

    def __init__(self, scale: float, zero_point: int) -> None:
        self._scale, self._zero = np.float32(scale), np.float32(zero_point)

    def judge(
        self, outputs: NDArray[np.float32], labels: NDArray[Any], *, count: bool = True
    ) -> Judgement:
        """Errors are 2 (output - label) / C."""
        wanted = labels.reshape(outputs.shape).astype(np.float32)
        if labels.dtype == np.int8:
            wanted -= self._zero
            wanted *= self._scale
        distance = outputs - wanted
        loss = float(np.square(distance, dtype=np.float64).mean(axis=1).sum())
        return Judgement(distance * np.float32(2.0 / outputs.shape[1]), loss, None)


def _mean_squared_error(model: Model, class_weights: Sequence[float]) -> Loss:
    if class_weights:
        raise TrainerError("mean_squared_error knows no classes, so they have no weights")
    entry = model.tensors[model.entry]
    return MeanSquaredError(entry.scale, entry.zero_point)


_MAKERS: dict[str, Callable[[Model, Sequence[float]], Loss]] = {
    "softmax_cross_entropy": lambda _, weights: SoftmaxCrossEntropy(weights),
    "sigmoid_cross_entropy": lambda _, weights: SigmoidCrossEntropy(weights),
    "mean_squared_error": _mean_squared_error,
}


def make_loss(name: str, model: Model, class_weights: Sequence[float] = ()) -> Loss:
    """The loss of this name for this model; TrainerError when there is none.

    ConfigError unless there is a weight for each class, or none at all.
    """
    if name not in _MAKERS:
        raise TrainerError(f"there is no loss {name!r}", hint=f"use {', '.join(_MAKERS)}")
    if not all(0 < weight < float("inf") for weight in class_weights):
        raise TrainerError("weights of classes must be above 0")
    made = _MAKERS[name](model, class_weights)
    classes = prod(model.tensors[model.exit].shape[1:])
    if class_weights and len(class_weights) != classes:
        raise ConfigError(
            f"{len(class_weights)} class weights, the model has {classes} classes",
            hint="give one weight for each class, in the order of the model's outputs",
        )
    return made
