# SPDX-License-Identifier: Apache-2.0
"""Requantisation against the definitions, in Python's unbounded integers and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedlearn.trainer.requantisation import Arithmetic, Requantiser


def _multiplier(scale: float) -> tuple[int, int]:
    """TFLite's QuantizeMultiplier: scale = M 2^(e-31)."""
    fraction, exponent = math.frexp(scale)
    multiplier = math.floor(Fraction(fraction) * 2**31 + Fraction(1, 2))
    if multiplier == 2**31:
        multiplier, exponent = multiplier // 2, exponent + 1
    return multiplier, exponent


def _half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def _half_away(value: Fraction) -> int:
    return _half_up(value) if value >= 0 else -_half_up(-value)


def _expected(arithmetic: Arithmetic, accumulator: int, scale: float) -> int:
    multiplier, exponent = _multiplier(scale)
    high = _half_up(Fraction(accumulator * multiplier * 2 ** max(exponent, 0), 2**31))
    last = _half_up if arithmetic is Arithmetic.TWICE_UP else _half_away
    return last(high * Fraction(2) ** min(exponent, 0))


@given(
    st.sampled_from([Arithmetic.TWICE_UP, Arithmetic.TWICE_AWAY]),
    st.integers(-(2**31) + 1, 2**31 - 1),
    st.floats(2.0**-24, 1.0, exclude_max=True, width=32),
)
@example(Arithmetic.TWICE_UP, -3, 0.5)
@example(Arithmetic.TWICE_AWAY, -3, 0.5)
@example(Arithmetic.TWICE_UP, -(2**31) + 1, 2.0**-24)
def test_fixed_point(arithmetic: Arithmetic, accumulator: int, scale: float) -> None:
    one = np.ones(1, np.float32)
    requantise = Requantiser(arithmetic, np.array([scale], np.float32), one, one)
    got = float(requantise(np.array([float(accumulator)]))[0])
    expected = _expected(arithmetic, accumulator, scale)
    # Beyond the int8 range only the side matters: the clamp follows.
    assert max(-256.0, min(256.0, got)) == max(-256, min(256, expected))


@given(st.integers(-(2**24), 2**24), st.floats(2.0**-20, 1.0, width=32))
def test_float32(accumulator: int, scale: float) -> None:
    one = np.ones(1, np.float32)
    requantise = Requantiser(Arithmetic.FLOAT32, np.array([scale], np.float32), one, one)
    product = np.float32(accumulator) * np.float32(scale)
    assert requantise(np.array([float(accumulator)]))[0] == np.float32(round(float(product)))


@pytest.mark.parametrize("arithmetic", [Arithmetic.TWICE_UP, Arithmetic.TWICE_AWAY])
def test_the_roundings_differ_where_they_should(arithmetic: Arithmetic) -> None:
    """Control: halves of negative numbers go up in one and away from zero in the other."""
    one = np.ones(1, np.float32)
    requantise = Requantiser(arithmetic, np.array([0.25], np.float32), one, one)
    got = requantise(np.array([-2.0, 2.0]))
    assert got.tolist() == ([0.0, 1.0] if arithmetic is Arithmetic.TWICE_UP else [-1.0, 1.0])


def test_vector_kernels_round_their_last_channels_otherwise() -> None:
    one = np.ones(1, np.float32)
    requantise = Requantiser(Arithmetic.TWICE_VECTORS, np.array([0.25], np.float32), one, one)
    got = requantise(np.full((1, 19), -2.0))
    assert got.tolist() == [[0.0] * 16 + [-1.0] * 3]
