# SPDX-License-Identifier: Apache-2.0
"""How good a model is, by the real interpreter, as an application would run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.dataset import Dataset
from fedlearn.model import Model
from fedlearn.runtime import Session
from fedlearn.wire.messages import LOSSES

# Keeps log(p) finite; one step of a softmax output quantised to int8 is 1/256.
_LEAST_PROBABILITY = 1.0 / 512.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracy (0..1; None where the loss knows none) and mean loss over `samples` samples."""

    accuracy: float | None
    loss: float
    samples: int

    @property
    def known_accuracy(self) -> float:
        """The accuracy of a classifier; ValueError where the loss knows none."""
        if self.accuracy is None:
            raise ValueError("this loss knows no accuracy")
        return self.accuracy


def evaluate(
    model: bytes,
    dataset: Dataset,
    threads: int = 1,
    *,
    loss: str = LOSSES[0],
    delegates: bool = True,
) -> Evaluation:
    """Judge `model` on samples whose labels are those of `loss`."""
    parsed = Model.parse(model)
    outputs = real_outputs(parsed, dataset.inputs, threads, delegates=delegates)
    if loss == "mean_squared_error":
        accuracies, losses = None, squared_errors(parsed, outputs, dataset.labels)
    elif loss == "sigmoid_cross_entropy":
        accuracies, losses = _judge_sets(parsed, outputs, dataset.labels)
    else:
        accuracies, losses = _judge_classes(parsed, outputs, dataset.labels)
    accuracy = None if accuracies is None else float(accuracies.mean())
    return Evaluation(accuracy, float(losses.mean()), len(outputs))


def real_outputs(
    model: Model, inputs: NDArray[np.int8], threads: int = 1, *, delegates: bool = True
) -> NDArray[np.float64]:
    """The model's answers (N, C) to samples, in real units.

    The samples are int8 already, so float32 edges of the file are left out.
    """
    output = model.tensors[model.exit]
    core = model.cut([model.exit])
    raw = Session(core, threads=threads, delegates=delegates).run(inputs)
    return (raw.reshape(len(raw), -1).astype(np.float64) - output.zero_point) * output.scale


def squared_errors(
    model: Model, outputs: NDArray[np.float64], labels: NDArray[Any]
) -> NDArray[np.float64]:
    """Mean squared error (N,) of each sample's outputs (N, C), in real units.

    int8 labels are an autoencoder's own inputs.
    """
    wanted = labels.reshape(outputs.shape).astype(np.float64)
    if labels.dtype == np.int8:
        entry = model.tensors[model.entry]
        wanted = (wanted - entry.zero_point) * entry.scale
    return np.asarray(np.square(outputs - wanted).mean(axis=1))


def _judge_classes(
    model: Model, outputs: NDArray[np.float64], labels: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    if model.operators[model.exit_operator].name != "SOFTMAX":
        outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    # Probabilities in int8 do not quite sum to one.
    scores = np.maximum(outputs, _LEAST_PROBABILITY)
    scores /= scores.sum(axis=1, keepdims=True)
    likely = scores[np.arange(len(scores)), labels]
    return scores.argmax(axis=1) == labels, -np.log(likely)


def _judge_sets(
    model: Model, outputs: NDArray[np.float64], labels: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    if model.operators[model.exit_operator].name != "LOGISTIC":
        outputs = 1 / (1 + np.exp(-outputs))
    present = labels.astype(bool)
    likely = np.maximum(np.where(present, outputs, 1 - outputs), _LEAST_PROBABILITY)
    return ((outputs >= 0.5) == present).mean(axis=1), -np.log(likely).sum(axis=1)
