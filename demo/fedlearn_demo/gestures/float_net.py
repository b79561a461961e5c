# SPDX-License-Identifier: Apache-2.0
"""The gestures net in float32, with NumPy: what int8 federated learning is compared with.

It starts from the same weights, dequantised, and shares no code with the int8 trainer. SGD and
federated averaging are those of McMahan et al. 2017, "Communication-Efficient Learning of Deep
Networks from Decentralized Data", algorithm 1, with every client in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.model import Model

Floats = NDArray[np.float32]
Weights = list[Floats]

_KERNEL, _STRIDE, _POOL = 9, 2, 5


@dataclass(frozen=True, eq=False)
class Shard:
    """One device's windows `x` float32 (N, window, channels), in the model's units, and classes."""

    x: Floats
    y: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """As the int8 devices train."""

    epochs: int
    batch_size: int
    learning_rate: float


def weights_of(model: Model) -> Weights:
    """Kernels (taps x channels in, channels out) and biases of the file, layer by layer."""
    found: Weights = []
    for operator in model.operators:
        if operator.name not in ("CONV_2D", "FULLY_CONNECTED"):
            continue
        for number in operator.inputs[1:3]:
            tensor = model.tensors[number]
            shape = [1] * len(tensor.shape)
            shape[tensor.axis] = -1
            values = model.array(number).astype(np.float32) * tensor.scales.reshape(shape)
            wide = values.reshape(len(values), -1).T if values.ndim > 1 else values
            found.append(np.ascontiguousarray(wide, np.float32))
    if len(found) != 8:
        raise ValueError("this is not the net of the gestures")
    return found


def logits(weights: Weights, x: Floats) -> Floats:
    """Logits (N, classes) of windows (N, window, channels)."""
    return _forward(weights, x)[-1]


def accuracy(weights: Weights, shard: Shard) -> float:
    """How often the likeliest class is right, 0..1."""
    return float((logits(weights, shard.x).argmax(axis=1) == shard.y).mean())


def train(start: Weights, shard: Shard, plan: Plan, seed: int) -> Weights:
    """Train a copy by SGD on the mean cross-entropy of each batch."""
    weights = [each.copy() for each in start]
    rng = np.random.Generator(np.random.PCG64(seed))
    batches = -(-len(shard.y) // plan.batch_size)
    for _ in range(plan.epochs):
        for rows in np.array_split(rng.permutation(len(shard.y)), batches):
            gradients = _backward(weights, shard.x[rows], shard.y[rows])
            for weight, gradient in zip(weights, gradients, strict=True):
                np.subtract(weight, np.float32(plan.learning_rate) * gradient, out=weight)
    return weights


def federate(
    start: Weights,
    shards: Sequence[Shard],
    plan: Plan,
    rounds: int,
    *,
    seed: int,
    pause: Callable[[], None] = lambda: None,
) -> Iterator[Weights]:
    """Yield the averaged weights after each round; `pause` is called between the devices."""
    mean, total = start, sum(len(each.y) for each in shards)
    for number in range(rounds):
        summed = [np.zeros_like(each) for each in mean]
        for client, shard in enumerate(shards):
            pause()
            local = train(mean, shard, plan, hash((seed, number, client)) % 2**63)
            for into, value in zip(summed, local, strict=True):
                np.add(into, value * np.float32(len(shard.y) / total), out=into)
        mean = summed
        yield mean


def _taps(x: Floats) -> Floats:
    """The inputs of each output of a convolution: (N, outputs, taps x channels)."""
    count, length, channels = x.shape
    outputs = -(-length // _STRIDE)
    total = (outputs - 1) * _STRIDE + _KERNEL - length  # SAME, as TFLite: an odd zero goes behind
    padded = np.pad(x, ((0, 0), (total // 2, total - total // 2), (0, 0)))
    views = np.lib.stride_tricks.sliding_window_view(padded, _KERNEL, axis=1)[:, ::_STRIDE]
    return views.transpose(0, 1, 3, 2).reshape(count, outputs, _KERNEL * channels)


def _untap(taps: Floats, length: int, channels: int) -> Floats:
    """The transpose of `_taps`: errors (N, outputs, taps x channels) to (N, length, channels)."""
    count, outputs, _ = taps.shape
    total = (outputs - 1) * _STRIDE + _KERNEL - length
    padded = np.zeros((count, length + total, channels), np.float32)
    split = taps.reshape(count, outputs, _KERNEL, channels)
    for tap in range(_KERNEL):
        padded[:, tap : tap + _STRIDE * outputs : _STRIDE] += split[:, :, tap]
    return padded[:, total // 2 : total // 2 + length]


def _relu(x: Floats) -> Floats:
    return np.maximum(x, 0)


def _forward(weights: Weights, x: Floats) -> tuple[Any, ...]:
    w1, b1, w2, b2, w3, b3, w4, b4 = weights
    taps1 = _taps(x)
    conv1 = _relu(taps1 @ w1 + b1)
    taps2 = _taps(conv1)
    conv2 = _relu(taps2 @ w2 + b2)
    pooled = conv2.reshape(len(x), -1, _POOL, conv2.shape[2]).mean(axis=2).reshape(len(x), -1)
    dense = _relu(pooled @ w3 + b3)
    return taps1, conv1, taps2, conv2, pooled, dense, dense @ w4 + b4


def _backward(weights: Weights, x: Floats, y: NDArray[np.int64]) -> Weights:
    _, _, w2, _, w3, _, w4, _ = weights
    taps1, conv1, taps2, conv2, pooled, dense, out = _forward(weights, x)
    error = np.exp(out - out.max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(y)), y] -= 1
    error /= np.float32(len(y))
    e3 = (error @ w4.T) * (dense > 0)
    spread = (e3 @ w3.T).reshape(len(x), -1, 1, conv2.shape[2]) / np.float32(_POOL)
    e2 = np.broadcast_to(spread, (len(x), spread.shape[1], _POOL, spread.shape[3]))
    e2 = e2.reshape(conv2.shape) * (conv2 > 0)
    e1 = _untap(e2 @ w2.T, conv1.shape[1], conv1.shape[2]) * (conv1 > 0)
    return [
        np.tensordot(taps1, e1, axes=([0, 1], [0, 1])),
        e1.sum(axis=(0, 1)),
        np.tensordot(taps2, e2, axes=([0, 1], [0, 1])),
        e2.sum(axis=(0, 1)),
        pooled.T @ e3,
        e3.sum(axis=0),
        dense.T @ error,
        error.sum(axis=0),
    ]
