# SPDX-License-Identifier: Apache-2.0
"""Operators of one byte, all 256 values of it: RELU and its kin, QUANTIZE, LOGISTIC."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tflite
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import ModelError
from fedlearn.trainer.requantisation import Arithmetic
from tests.client.networks import Operand, joined
from tests.client.trainer.elementwise import (
    centred,
    from_runtime,
    made_layer,
    passing,
    real,
    scales,
    slopes,
    zeros,
)

QUANTIZE, LOGISTIC = tflite.BuiltinOperator.QUANTIZE, tflite.BuiltinOperator.LOGISTIC
# The operator, and the fused activation that has the same bounds.
ACTIVATIONS = {
    QUANTIZE: 0,
    tflite.BuiltinOperator.RELU: 1,
    tflite.BuiltinOperator.RELU_N1_TO_1: 2,
    tflite.BuiltinOperator.RELU6: 3,
}


def _all_bytes(rng: np.random.Generator, operand: Operand) -> Any:
    """Every byte once, in samples of the operand's shape, the last filled up with any."""
    size = int(np.prod(operand.shape))
    values = np.arange(-128, 128).astype(np.int8)
    more = rng.integers(-128, 128, -256 % size).astype(np.int8)
    return rng.permutation(np.concatenate([values, more])).reshape(-1, *operand.shape[1:])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Operand, Operand]:
    """An input and an output, in scales that differ by little, by a power of two, or by a lot."""
    sizes = st.sampled_from([1, 7, 8, 16, 19, 32, 45])
    shape = (1, *draw(st.lists(st.integers(1, 3), max_size=1)), draw(sizes))
    source = Operand(shape, draw(scales), draw(zeros))
    factor = draw(
        st.one_of(
            st.sampled_from([0.25, 0.5, 1.0, 1.0, 2.0, 4.0, 8.0]),
            st.floats(0.5, 2.0),
            st.floats(2.0**-12, 2.0**12),
        )
    )
    return source, Operand(shape, float(np.float32(source.scale * factor)), draw(zeros))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(ACTIVATIONS)), pairs(), st.integers(0, 2**32))
def test_a_change_of_scale(code: int, pair: tuple[Operand, Operand], seed: int) -> None:
    source, output = pair
    rng = np.random.default_rng(seed)
    model, layer = made_layer(joined(code, [source], output))
    values = [_all_bytes(rng, source)]
    got = layer.forward(*centred([source], values)) + layer.output.zero_point
    expected = from_runtime(model, [source], values)
    np.testing.assert_array_equal(got, expected)

    errors = rng.normal(0, 1, got.shape).astype(np.float32)
    (below,) = layer.backward(errors, (True,))
    passed = errors * passing(layer, expected, ACTIVATIONS[code])
    slope = slopes(lambda x: x, real([source], values), passed, 0, step=0.5)
    assert below is not None
    np.testing.assert_allclose(below, slope, rtol=1e-6)
    assert layer.backward(errors, (False,)) == (None,)


def test_the_two_codes_of_quantize_differ() -> None:
    """Control: at a quarter of the scale the second rounding meets halves, which one code takes up.

    Seventeen values: the last of them is always the portable code's.
    """
    source, output = Operand((1, 17), 0.5, 1), Operand((1, 17), 2.0, 0)
    model, layer = made_layer(joined(QUANTIZE, [source], output))
    values = [_all_bytes(np.random.default_rng(0), source)]
    expected = from_runtime(model, [source], values)
    usual, other = layer.arithmetics()
    for arithmetic in (usual, other):
        layer.choose(arithmetic)
        got = layer.forward(*centred([source], values))
        assert np.array_equal(got, expected) == (arithmetic is usual)
        assert np.array_equal(got[:, 16:], expected[:, 16:])


def test_an_arithmetic_that_no_kernel_has_is_refused() -> None:
    operand = Operand((1, 4), 0.1, 0)
    _, layer = made_layer(joined(tflite.BuiltinOperator.RELU, [operand], operand))
    with pytest.raises(ValueError, match="RELU"):
        layer.choose(Arithmetic.FLOAT32)


def test_another_shape_is_refused() -> None:
    operands = [Operand((1, 4), 0.1, 0)]
    with pytest.raises(ModelError, match="its output is"):
        made_layer(joined(QUANTIZE, operands, Operand((1, 2, 2), 0.1, 0)))


def _logistic(x: Any) -> Any:
    return (1 + np.tanh(x / 2)) / 2


@settings(max_examples=300, deadline=None)
@given(st.floats(2.0**-12, 4.0, width=32), zeros, st.integers(0, 2**32))
def test_logistic(scale: float, zero: int, seed: int) -> None:
    source, output = Operand((1, 19), scale, zero), Operand((1, 19), 1 / 256, -128)
    rng = np.random.default_rng(seed)
    model, layer = made_layer(joined(LOGISTIC, [source], output))
    values = [_all_bytes(rng, source)]
    got = layer.forward(*centred([source], values)) + layer.output.zero_point
    np.testing.assert_array_equal(got, from_runtime(model, [source], values))

    errors = rng.normal(0, 1, got.shape).astype(np.float32)
    (below,) = layer.backward(errors, (True,))
    slope = slopes(_logistic, real([source], values), errors, 0, step=1e-4)
    # The derivative y (1 - y) changes by less than y does, which is at most one of 256 steps off.
    far = np.abs(below - slope) / np.abs(errors)
    assert far.max() < 1.01 / 256
    # Control: that would not do for a derivative that is y or 1 - y.
    if scale * 255 > 8:
        y = _logistic(real([source], values)[0])
        assert np.abs(y - y * (1 - y)).max() > 0.2
