# SPDX-License-Identifier: Apache-2.0
"""Proof, on the device itself, that the tail computes what its runtime computes.

Before training, each layer of the tail is compared with the real interpreter on some of the
device's own samples, and takes the arithmetic whose results are the same in every bit. A layer for
which there is none is an error: training on numbers that the deployed model does not have would
fail in ways that nobody could see.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import TrainerError
from fedlearn.model import Model
from fedlearn.runtime import Session, runtime_name
from fedlearn.trainer.layer import Array, Layer
from fedlearn.trainer.requantisation import Arithmetic
from fedlearn.trainer.tail import Tail, take

# Roundings differ in one output of some thousand. Where so few samples do not tell two apart, the
# one that TFLite's own kernels use for the operator is taken.
SAMPLES = 16


def calibrate(
    tail: Tail,
    model: Model,
    inputs: NDArray[np.int8],
    *,
    samples: int = SAMPLES,
    batch: int = SAMPLES,
    delegates: bool = False,
) -> None:
    """Give every layer of `tail` the arithmetic of this machine's runtime.

    `inputs` are samples (N, ...) of the model's input; the first `samples` are used, in batches of
    no more than `batch`, which bounds the memory. Raises TrainerError naming the operator when no
    arithmetic reproduces the runtime's output.
    """
    inputs = inputs[:samples]
    features = tail.features(inputs, delegates=delegates)
    session = Session(model.cut([layer.output.index for layer in tail.layers]), delegates=delegates)
    left: list[list[Arithmetic | None]] = [
        list(layer.arithmetics()) or [None] for layer in tail.layers
    ]
    for layer, arithmetics in zip(tail.layers, left, strict=True):
        if arithmetics[0] is not None:
            layer.choose(arithmetics[0])
    parts = np.array_split(np.arange(len(inputs)), -(-len(inputs) // min(SAMPLES, batch)))
    tried = 0
    # An arithmetic that a later batch called for has not been compared on those before.
    while tried != sum(map(len, left)):
        tried = sum(map(len, left))
        for rows in parts:
            made = session.run_all(inputs[rows])
            values = tail.centred(take(features, rows))
            for at, (layer, raw) in enumerate(zip(tail.layers, made, strict=True)):
                x = tail.inputs_of(at, values)
                expected = raw.astype(np.float32) - layer.output.zero_point
                values[layer.output.index] = _matched(layer, x, expected, left[at])


def _matched(
    layer: Layer, x: tuple[Array, ...], expected: Array, left: list[Arithmetic | None]
) -> Array:
    """The layer's output, equal to `expected` in every bit; drops what differs from `left`."""
    while True:
        y = layer.forward(*x)
        layer.forget()
        if np.array_equal(y.ravel(), expected.ravel()):
            return y
        left.pop(0)
        if not left or left[0] is None:
            break
        layer.choose(left[0])
    raise TrainerError(
        f"{runtime_name()} computes operator {layer.operator.index} ({layer.operator.name}) "
        "in a way that this trainer does not reproduce",
        hint="please report it with the model; a shorter tail may work",
    )
