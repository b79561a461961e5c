# SPDX-License-Identifier: Apache-2.0
"""MEAN: forward against the real interpreter, errors against finite differences of a mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tflite
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import ModelError
from fedlearn.model import Model
from fedlearn.runtime import Session, is_litert
from fedlearn.trainer.mean import Mean
from fedlearn.trainer.requantisation import Arithmetic
from tests.client.networks import reducer, shaping

MEAN = tflite.BuiltinOperator.MEAN
ZEROS = st.sampled_from([-128, 127, 0]) | st.integers(-128, 127)


@st.composite
def reductions(draw: st.DrawFn) -> tuple[tuple[int, ...], list[int], bool]:
    """Shape, axes as a file may write them, and whether dimensions are kept."""
    if draw(st.booleans()):  # the usual one
        sizes = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 40))
        axes = draw(st.sampled_from([[1, 2], [2, 1], [-3, -2], [1, -2], [1, 2, 1]]))
        return (1, *sizes), axes, draw(st.booleans())
    shape = (1, *draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    rank = len(shape)
    axes = draw(st.lists(st.integers(1, rank - 1), min_size=1, max_size=rank - 1, unique=True))
    axes = [axis - rank if draw(st.booleans()) else axis for axis in axes]
    return shape, axes, draw(st.booleans())


def _layer(
    shape: tuple[int, ...],
    axes: list[int],
    *,
    keep_dims: bool,
    scales: tuple[float, float] = (0.05, 0.05),
    zeros: tuple[int, int] = (0, 0),
) -> tuple[Model, Mean]:
    gone = {axis % len(shape) for axis in axes}
    if keep_dims:
        out = tuple(1 if axis in gone else size for axis, size in enumerate(shape))
    else:
        out = tuple(size for axis, size in enumerate(shape) if axis not in gone)
    network = shaping(
        MEAN,
        shape,
        out,
        options=reducer(keep_dims=keep_dims),
        constant=np.array(axes),
        scales=scales,
        zeros=zeros,
    )
    model = Model.parse(network.write())
    return model, Mean(model, model.operators[0])


def _raw(seed: int, shape: tuple[int, ...], samples: int = 24) -> Any:
    """Int8 values whose means differ from sample to sample, and fill the range."""
    rng = np.random.default_rng(seed)
    each = (samples, *[1] * (len(shape) - 1))
    noise = rng.integers(-128, 128, (samples, *shape[1:])) // rng.integers(1, 30, each)
    return np.clip(noise + rng.integers(-128, 128, each), -128, 127).astype(np.int8)


def _forward(layer: Mean, raw: Any) -> Any:
    return layer.forward(raw.astype(np.float32) - layer.input.zero_point) + layer.output.zero_point


@settings(max_examples=300, deadline=None)
@given(
    reductions(),
    st.integers(0, 2**32),
    st.floats(2.0**-10, 0.125, width=32),
    st.one_of(st.just(1.0), st.floats(0.06, 16.0)),
    ZEROS,
    st.one_of(st.none(), ZEROS),
)
def test_forward_is_bit_exact(
    reduction: tuple[tuple[int, ...], list[int], bool],
    seed: int,
    scale: float,
    ratio: float,
    zero: int,
    other_zero: int | None,
) -> None:
    """With the usual arithmetic, no choice: what this runtime is known to do on this machine."""
    shape, axes, keep_dims = reduction
    model, layer = _layer(
        shape,
        axes,
        keep_dims=keep_dims,
        scales=(scale, scale * ratio),
        zeros=(zero, zero if other_zero is None else other_zero),
    )
    raw = _raw(seed, shape)
    expected = Session(model.data).run(raw)
    np.testing.assert_array_equal(_forward(layer, raw), expected)


@pytest.mark.parametrize("keep_dims", [True, False])
def test_another_arithmetic_is_seen(keep_dims: bool) -> None:
    """Control: on many halves the kernels' roundings differ, and only the usual one fits."""
    shape = (1, 4, 4, 37)
    model, layer = _layer(shape, [1, 2], keep_dims=keep_dims, zeros=(7, 9))
    raw = _raw(1, shape, 100)
    expected = Session(model.data).run(raw)
    differing = {}
    for arithmetic in layer.arithmetics():
        layer.choose(arithmetic)
        got = _forward(layer, raw)
        assert np.abs(got - expected).max() <= 1
        differing[arithmetic] = int((got != expected).sum())
    usual = layer.arithmetics()[0]
    assert differing.pop(usual) == 0
    assert min(differing.values()) > 0
    assert (usual is Arithmetic.TWICE_VECTORS) == (keep_dims and is_litert())


def test_the_other_kernel_is_seen() -> None:
    """Control: with and without kept dimensions the same mean has other bits in the runtime."""
    shape = (1, 7, 7, 40)
    made = []
    for keep_dims in (True, False):
        model, _ = _layer(shape, [1, 2], keep_dims=keep_dims, scales=(0.05, 0.03), zeros=(5, -20))
        made.append(Session(model.data).run(_raw(2, shape, 100)).reshape(100, 40))
    assert (made[0] != made[1]).any()


def test_sums_beyond_float32_are_exact() -> None:
    """300 x 300 cells at one end of int8 and the zero point at the other."""
    shape = (1, 300, 300, 2)
    model, layer = _layer(shape, [1, 2], keep_dims=False, zeros=(127, 127))
    raw: Any = np.full(shape, -128, np.int8)
    raw[0, :180] = -127
    expected = Session(model.data).run(raw)
    np.testing.assert_array_equal(_forward(layer, raw), expected)
    centred = raw.astype(np.float32) - 127
    rounded = centred.reshape(-1, 2).cumsum(axis=0, dtype=np.float32)[-1] / 90_000 + 127
    assert (np.rint(rounded) != expected).all(), "control: sums in float32 are off by a step"


@settings(max_examples=200, deadline=None)
@given(reductions(), st.integers(0, 2**32), st.floats(0.06, 16.0), st.integers(-128, 127), ZEROS)
def test_errors_follow_finite_differences(
    reduction: tuple[tuple[int, ...], list[int], bool],
    seed: int,
    ratio: float,
    zero: int,
    other_zero: int,
) -> None:
    shape, axes, keep_dims = reduction
    scales = (0.05, 0.05 * ratio)
    _, layer = _layer(shape, axes, keep_dims=keep_dims, scales=scales, zeros=(zero, other_zero))
    raw = _raw(seed, shape, 3)
    _forward(layer, raw)
    real = (raw.astype(np.float64) - zero) * scales[0]
    low, high = ((end - other_zero) * scales[1] for end in (-128, 127))

    def plain(x: Any) -> Any:
        gone = tuple({axis % len(shape) for axis in axes})
        return np.clip(x.mean(axis=gone, keepdims=keep_dims), low, high)

    y = plain(real)
    errors = np.random.default_rng(seed).normal(size=y.shape).astype(np.float32)
    # Rounding may carry a value to the other side of the clamp: no errors there.
    free = (real.mean(axis=tuple({axis % len(shape) for axis in axes}))).reshape(y.shape)
    errors[(np.abs(free - low) < 1.5 * scales[1]) | (np.abs(free - high) < 1.5 * scales[1])] = 0
    (below,) = layer.backward(errors, (True,))
    assert below is not None
    assert below.dtype == np.float32
    rng = np.random.default_rng(seed)
    for place in rng.choice(real.size, min(real.size, 12), replace=False):
        moved = real.copy()
        moved.ravel()[place] += scales[1] / 4
        slope = (errors * (plain(moved) - y)).sum() / (scales[1] / 4)
        np.testing.assert_allclose(below.ravel()[place], slope, rtol=1e-4, atol=1e-7)
    assert layer.backward(errors, (False,)) == (None,)


def test_no_error_passes_where_int8_cannot_hold_the_mean() -> None:
    _, layer = _layer((1, 2, 3), [1], keep_dims=False, scales=(0.1, 0.01), zeros=(0, 0))
    layer.forward(np.array([[[100, 5, 0], [100, 6, 0]]], np.float32))
    (below,) = layer.backward(np.ones((1, 3), np.float32), (True,))
    assert below is not None
    assert below.tolist() == [[[0, 0.5, 0.5], [0, 0.5, 0.5]]]


@pytest.mark.parametrize(("axes", "reason"), [([0, 1], "mix"), ([-3], "mix"), ([3], "axis 3")])
def test_axes_that_cannot_be_trained_are_refused(axes: list[int], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        _layer((1, 2, 3), axes, keep_dims=True)


def test_pinned_an_axis_counts_the_same_from_either_end() -> None:
    """Not all runtimes take the same kernel for [1, 2] and for [-3, -2]."""
    outputs = []
    for axes in ([1, 2], [-3, -2]):
        shape = (1, 5, 4, 3)
        _, mean = _layer(shape, axes, keep_dims=True, scales=(0.05, 0.013), zeros=(-7, 21))
        mean.pin()
        x = _raw(0, shape, 400).astype(np.float32) + 7
        outputs.append(mean.forward(x))
    np.testing.assert_array_equal(outputs[0], outputs[1])
