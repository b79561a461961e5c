# SPDX-License-Identifier: Apache-2.0
"""Fixed-point parameters, and the quantised errors that move them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fedlearn.trainer.error_quantisation import quantise
from fedlearn.trainer.parameters import Parameter


def test_small_steps_add_up() -> None:
    """Sixteen steps of a sixteenth move a weight by one; rounded to the grid each would be lost."""
    weight = Parameter(np.array([[10]], np.int8))
    for _ in range(16):
        weight.step(np.ones((1, 1), np.float32), 1 / 16)
    assert weight.values().tolist() == [[9]]


@pytest.mark.parametrize(("start", "gradient", "end"), [(120, -1e9, 127), (-120, 1e9, -127)])
def test_weights_stay_in_their_range(start: int, gradient: float, end: int) -> None:
    weight = Parameter(np.array([[start]], np.int8))
    weight.step(np.full((1, 1), gradient, np.float32), 1.0)
    assert weight.values().tolist() == [[end]]
    assert weight.values().dtype == np.int8


@given(st.integers(-127, 127), st.lists(st.integers(-5000, 5000), max_size=20))
def test_steps_are_exact_in_fixed_point(start: int, steps: list[int]) -> None:
    """Against fractions: a step of k/256 is k in fixed point, clipped at +-127."""
    weight = Parameter(np.array([start], np.int8))
    expected = Fraction(start)
    for step in steps:
        weight.step(np.array([step], np.float32), 1 / 256)
        expected = min(Fraction(127), max(Fraction(-127), expected - Fraction(step, 256)))
    assert weight.values().tolist() == [round(expected)]


def test_biases_use_their_32_bits() -> None:
    bias = Parameter(np.array([1_000_000_007, -5], np.int32))
    bias.step(np.array([7.0, -3.0]), 1.0)
    assert bias.values().tolist() == [1_000_000_000, -2]
    assert bias.values().dtype == np.int32


@given(arrays(np.float32, (5, 7), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)))
def test_quantised_errors(errors: NDArray[Any]) -> None:
    integers, scale = quantise(errors)
    np.testing.assert_array_equal(integers, np.rint(integers))
    assert np.abs(integers).max() <= 127
    fraction = float(np.log2(scale))
    assert fraction == round(fraction), "the scale is a power of two"
    if np.abs(errors).max() < 1e-30:
        return  # errors this small count as none
    assert np.abs(integers * scale - errors).max() <= scale / 2
    assert np.abs(integers).max() >= 63, "half of the range is used"


def test_errors_that_are_no_numbers_train_nothing() -> None:
    integers, _ = quantise(np.array([[np.nan, 1.0], [np.inf, 0.0]], np.float32))
    assert not integers.any()
