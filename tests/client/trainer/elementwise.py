# SPDX-License-Identifier: Apache-2.0
"""What the tests of operators without weights share: one operator, its inputs, both oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fedlearn.model import Model
from fedlearn.runtime import Session
from fedlearn.trainer.layer import Layer
from fedlearn.trainer.operators import LAYERS
from tests.client.networks import Network, Operand

SAMPLES = 6


def made_layer(network: Network) -> tuple[Model, Layer]:
    """The layer of the last operator."""
    model = Model.parse(network.write())
    last = model.operators[-1]
    return model, LAYERS[last.name](model, last)


def samples(rng: np.random.Generator, operands: list[Operand], count: int = SAMPLES) -> list[Any]:
    """Random int8 values (N, ...) of the operands that are no constants; constants as they are."""
    return [
        rng.integers(-128, 128, (count, *each.shape[1:])).astype(np.int8)
        if each.values is None
        else each.values
        for each in operands
    ]


def centred(operands: list[Operand], values: list[Any]) -> list[Any]:
    """Values as layers take them."""
    return [
        x.astype(np.float32) - np.float32(each.zero)
        for each, x in zip(operands, values, strict=True)
    ]


def from_runtime(model: Model, operands: list[Operand], values: list[Any]) -> Any:
    """The operator's output by the real interpreter, int8 (N, ...)."""
    flat = [
        x.reshape(len(x), -1)
        for each, x in zip(operands, values, strict=True)
        if each.values is None
    ]
    return Session(model.data).run(np.concatenate(flat, axis=1))


def real(operands: list[Operand], values: list[Any]) -> list[Any]:
    """Values in real units, float64."""
    return [
        (x.astype(np.float64) - each.zero) * each.scale
        for each, x in zip(operands, values, strict=True)
    ]


def passing(layer: Layer, output: Any, activation: int = 0) -> Any:
    """Where no clamp holds an int8 output: neither int8's own bounds nor a fused activation's."""
    tensor = layer.output
    low, high = {0: (None, None), 1: (0, None), 2: (-1, 1), 3: (0, 6)}[activation]
    # The runtimes round a bound in float32, halves away from zero: 6 / 0.8 is 8 steps.
    steps = [
        None
        if bound is None
        else tensor.zero_point
        + int(np.copysign(np.floor(abs(np.float32(bound) / tensor.scales[0]) + 0.5), bound))
        for bound in (low, high)
    ]
    lowest = -128 if steps[0] is None else max(-128, steps[0])
    highest = 127 if steps[1] is None else min(127, steps[1])
    return (output > lowest) & (output < highest)


def exact_errors(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Errors that quantise to themselves, so that their sums are exact."""
    return rng.integers(-63, 64, shape).astype(np.float32) * np.float32(2.0**-9)


def slopes(
    function: Callable[..., Any], reals: list[Any], errors: Any, at: int, step: float
) -> Any:
    """Central differences of sum(errors * function(*reals)) by each element of one operand.

    The operator works on each sample alone, so one element of every sample moves at a time.
    """
    result = np.zeros(reals[at].shape)
    for place in np.ndindex(reals[at].shape[1:]):
        moved = []
        for sign in (1, -1):
            changed = [x.copy() for x in reals]
            changed[at][(slice(None), *place)] += sign * step
            moved.append(errors * function(*changed))
        change = (moved[0] - moved[1]).reshape(len(errors), -1).sum(axis=1)
        result[(slice(None), *place)] = change / (2 * step)
    return result


scales = st.floats(2.0**-10, 2.0**-3, width=32)
zeros = st.one_of(st.integers(-128, 127), st.sampled_from([-128, 0, 127]))
