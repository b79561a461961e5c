# SPDX-License-Identifier: Apache-2.0
"""Proof, on the device itself, that the trainer computes what its runtime computes.

Runtimes differ in how they round: in an output of some thousand, by one step. Before training, each
layer is compared with the real interpreter on some of the device's own samples, and must give the
same bits in one of the roundings that kernels are known to have. A trained layer for which there is
none is an error (a frozen one is left to the interpreter, see `Prefix`): training on numbers that
the deployed model does not have would fail in ways that nobody could see. Training itself then
rounds in one way on every machine (`Layer.pin`), so that its bits do not depend on the runtime.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import TrainerError
from fedlearn.model import Model
from fedlearn.runtime import Session, runtime_name
from fedlearn.trainer.layer import Array, Layer
from fedlearn.trainer.requantisation import Arithmetic
from fedlearn.trainer.section import Section

# Roundings differ in one output of some thousand. Where so few samples do not tell two apart, the
# one that TFLite's own kernels use for the operator is taken.
SAMPLES = 16


def prove(
    section: Section, model: Model, inputs: NDArray[np.int8], *, batch: int = SAMPLES
) -> None:
    """Match this machine's runtime, then round as all machines do.

    `inputs` are samples (N, ...) of the model's input. Raises TrainerError as `match` does.
    """
    match(section, model, inputs, batch=batch)
    section.pin()


def match(
    section: Section,
    model: Model,
    inputs: NDArray[np.int8],
    *,
    samples: int = SAMPLES,
    batch: int = SAMPLES,
    delegates: bool = False,
) -> None:
    """Give every layer of `section` the arithmetic of this machine's runtime.

    The first `samples` of `inputs` are used, in batches of no more than `batch`, which bounds the
    memory. Raises TrainerError naming the operator when no arithmetic reproduces the runtime's
    output.
    """
    inputs = inputs[:samples]
    before = [number for number in section.entries if number != model.entry]
    outputs = [layer.output.index for layer in section.layers]
    session = Session(model.cut([*before, *outputs]), delegates=delegates)
    left: list[list[Arithmetic | None]] = [
        list(layer.arithmetics()) or [None] for layer in section.layers
    ]
    for layer, arithmetics in zip(section.layers, left, strict=True):
        if arithmetics[0] is not None:
            layer.choose(arithmetics[0])
    parts = np.array_split(np.arange(len(inputs)), -(-len(inputs) // min(SAMPLES, batch)))
    tried = 0
    # An arithmetic that a later batch called for has not been compared on those before.
    while tried != sum(map(len, left)):
        tried = sum(map(len, left))
        for rows in parts:
            made = dict(zip([*before, *outputs], session.run_all(inputs[rows]), strict=True))
            made[model.entry] = inputs[rows]
            values = section.centred(tuple(made[number] for number in section.entries))
            for at, layer in enumerate(section.layers):
                x = section.inputs_of(at, values)
                number, zero = layer.output.index, layer.output.zero_point
                expected = made.pop(number).astype(np.float32) - zero
                values[number] = _matched(layer, x, expected, left[at])


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
