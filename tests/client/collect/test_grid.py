# SPDX-License-Identifier: Apache-2.0
"""Invariant: what is stored is what the trainer's own quantisation makes of the same samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.collect.grid import Grid
from fedlearn.collect.settings import SamplesConfig

VALUES = st.floats(-1e9, 1e9)
SCALES = st.floats(1e-3, 1e3)


@given(st.lists(VALUES, min_size=1, max_size=8), SCALES, SCALES, st.integers(-128, 127), VALUES)
def test_it_is_the_quantisation_of_numpy(
    values: list[float], scale: float, step: float, zero: int, offset: float
) -> None:
    count = len(values)
    grid = Grid(tuple(map(str, range(count))), 1, (offset,) * count, (scale,) * count, step, zero)
    steps = np.rint((np.array(values) - offset) / scale / step) + zero
    wanted = np.clip(steps, -128, 127).astype(np.int8)
    data, clipped = grid.quantise(values)
    assert np.array_equal(np.frombuffer(data, np.int8), wanted)
    assert clipped == np.count_nonzero((steps < -128) | (steps > 127))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_float_is_too_large(value: float) -> None:
    Grid(("a",), 1, (0.0,), (1e-3,), 1e-9, 0).quantise([value])


def test_another_zero_point_would_be_found() -> None:
    """Control."""
    one, other = (Grid(("a",), 1, (0.0,), (1.0,), 0.1, zero) for zero in (0, 1))
    assert one.quantise([0.5]) != other.quantise([0.5])


def test_a_stored_value_stands_for_the_real_one() -> None:
    grid = Grid(("a", "b"), 1, (0.0, 20.0), (1.0, 5.0), 0.02, -3)
    data, _ = grid.quantise([-0.5, 24.0])
    assert [grid.real(byte, at) for at, byte in enumerate(data)] == pytest.approx([-0.5, 24.0])


def test_json_and_fingerprint() -> None:
    grid = Grid.of(SamplesConfig(("a", "b"), 3, step=0.1, scale=(1.0, 0.1)))
    assert Grid.from_json(grid.to_json()) == grid
    other = Grid.of(SamplesConfig(("a", "b"), 3, step=0.1, scale=(1.0, 0.2)))
    assert len({grid.fingerprint, other.fingerprint}) == 2
