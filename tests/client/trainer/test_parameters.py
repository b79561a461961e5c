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

from fedlearn.errors import TrainerError
from fedlearn.trainer.dither import Dither
from fedlearn.trainer.error_quantisation import quantise
from fedlearn.trainer.parameters import Parameter

DITHER = [62815, 18261, 5453, 89515]


def _thawed(values: NDArray[Any], **options: Any) -> Parameter:
    parameter = Parameter(values)
    parameter.thaw(**options)
    return parameter


def test_small_steps_add_up() -> None:
    """Sixteen steps of a sixteenth move a weight by one; rounded to the grid each would be lost."""
    weight = _thawed(np.array([[10]], np.int8))
    for _ in range(16):
        weight.step(np.ones((1, 1), np.float32), 1 / 16)
    assert weight.values().tolist() == [[9]]


@pytest.mark.parametrize(("start", "gradient", "end"), [(120, -1e9, 127), (-120, 1e9, -127)])
def test_weights_stay_in_their_range(start: int, gradient: float, end: int) -> None:
    weight = _thawed(np.array([[start]], np.int8))
    weight.step(np.full((1, 1), gradient, np.float32), 1.0)
    assert weight.values().tolist() == [[end]]
    assert weight.values().dtype == np.int8


@given(st.integers(-127, 127), st.lists(st.integers(-5000, 5000), max_size=20))
def test_steps_are_exact_in_fixed_point(start: int, steps: list[int]) -> None:
    """Against fractions: a step of k/256 is k in fixed point, clipped at +-127."""
    weight = _thawed(np.array([start], np.int8))
    expected = Fraction(start)
    for step in steps:
        weight.step(np.array([step], np.float32), 1 / 256)
        expected = min(Fraction(127), max(Fraction(-127), expected - Fraction(step, 256)))
    assert weight.values().tolist() == [round(expected)]


def test_biases_use_their_32_bits() -> None:
    bias = _thawed(np.array([1_000_000_007, -5], np.int32))
    bias.step(np.array([7.0, -3.0]), 1.0)
    assert bias.values().tolist() == [1_000_000_000, -2]
    assert bias.values().dtype == np.int32


def test_stochastic_rounding_is_right_in_the_mean() -> None:
    """Without fraction bits: a thousand steps of 0.3 on each of 5,000 weights, from 40."""
    weight = _thawed(np.full((5000, 1), 40, np.int8), fraction_bits=0, dither=Dither(1))
    for _ in range(100):
        weight.step(np.full((5000, 1), 0.3, np.float32), 1.0)
    moved = 40 - weight.values().astype(float)
    # The standard deviation of one weight is sqrt(100 * 0.3 * 0.7) = 4.6.
    assert abs(moved.mean() - 30) < 0.3
    assert 4 < moved.std() < 5.2


def test_rounding_to_nearest_without_fraction_bits_loses_small_steps() -> None:
    """Control of the test above."""
    weight = _thawed(np.full((50, 1), 40, np.int8), fraction_bits=0)
    for _ in range(100):
        weight.step(np.full((50, 1), 0.3, np.float32), 1.0)
    assert (weight.values() == 40).all()


def test_dither_is_a_stream_of_its_own() -> None:
    draws = [Dither(seed).draw((1000, 8)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).mean() > 0.99
    stream = Dither(1)
    assert (stream.draw((64,)) != stream.draw((64,))).any()
    assert draws[0].min() > 0
    assert draws[0].max() < 1
    assert abs(draws[0].mean() - 0.5) < 0.02
    # Recorded: the numbers are part of what makes a training repeatable.
    assert (Dither(7).draw((4,)) * 2**17).astype(int).tolist() == DITHER


def test_a_pull_goes_back_to_the_start() -> None:
    """FedProx without a gradient: half of the way back each time."""
    weight = _thawed(np.array([[64]], np.int8), anchored=True)
    weight.step(np.ones((1, 1), np.float32), 32.0)
    for expected in (48, 56, 60):
        weight.step(np.zeros((1, 1), np.float32), 1.0, 0.5)
        assert weight.values().tolist() == [[expected]]


def test_a_snapshot_brings_the_fraction_back() -> None:
    weight = _thawed(np.array([[64]], np.int8))
    weight.step(np.ones((1, 1), np.float32), 0.25)
    kept = weight.snapshot()
    weight.step(np.ones((1, 1), np.float32), 9.0)
    weight.restore(kept)
    assert weight.values().tolist() == [[64]]
    weight.step(np.ones((1, 1), np.float32), 0.5)
    assert weight.values().tolist() == [[63]]


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_errors_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(TrainerError, match="beyond every number"):
        quantise(np.array([[bad, 1.0], [2.0, 0.0]], np.float32))
