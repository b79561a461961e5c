# SPDX-License-Identifier: Apache-2.0
"""PAD, and the operators that only reshape: forward against the real interpreter, and adjoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tflite
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import ModelError
from fedlearn.model import Model
from fedlearn.runtime import Session
from fedlearn.trainer.layer import Layer
from fedlearn.trainer.operators import LAYERS
from tests.client.networks import shaping

PAD, SQUEEZE, EXPAND_DIMS = (
    tflite.BuiltinOperator.PAD,
    tflite.BuiltinOperator.SQUEEZE,
    tflite.BuiltinOperator.EXPAND_DIMS,
)


@st.composite
def paddings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[list[int]]]:
    """A shape of two to four axes, and paddings of all but the batch."""
    shape = (1, *draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    widths = [[draw(st.integers(0, 3)), draw(st.integers(0, 3))] for _ in shape[1:]]
    return shape, [[0, 0], *widths]


def _layer(
    code: int, shape: tuple[int, ...], out: tuple[int, ...], constant: Any, *, zero: int
) -> tuple[Model, Layer]:
    network = shaping(code, shape, out, constant=constant, zeros=(zero, zero))
    model = Model.parse(network.write())
    return model, LAYERS[model.operators[0].name](model, model.operators[0])


def _pad(shape: tuple[int, ...], widths: list[list[int]], zero: int) -> tuple[Model, Layer]:
    out = tuple(
        size + before + behind for size, (before, behind) in zip(shape, widths, strict=True)
    )
    return _layer(PAD, shape, out, widths, zero=zero)


def _raw(seed: int, shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(seed).integers(-128, 128, (5, *shape[1:])).astype(np.int8)


def _forward(layer: Layer, raw: Any) -> Any:
    return layer.forward(raw.astype(np.float32) - layer.input.zero_point) + layer.output.zero_point


@settings(max_examples=200, deadline=None)
@given(
    paddings(),
    st.integers(0, 2**32),
    st.sampled_from([-128, 127, 0]) | st.integers(-128, 127),
)
def test_pad_forward_is_bit_exact(
    padding: tuple[tuple[int, ...], list[list[int]]], seed: int, zero: int
) -> None:
    shape, widths = padding
    model, layer = _pad(shape, widths, zero)
    raw = _raw(seed, shape)
    np.testing.assert_array_equal(_forward(layer, raw), Session(model.data).run(raw))


@settings(max_examples=200, deadline=None)
@given(paddings(), st.integers(0, 2**32))
def test_pad_errors_follow_finite_differences(
    padding: tuple[tuple[int, ...], list[list[int]]], seed: int
) -> None:
    shape, widths = padding
    _, layer = _pad(shape, widths, 0)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, *shape[1:]))
    layer.forward(x.astype(np.float32))
    y = np.pad(x, widths)
    errors = rng.normal(size=y.shape).astype(np.float32)
    (below,) = layer.backward(errors, (True,))
    assert below is not None
    for place in range(x.size):
        moved = x.copy()
        moved.ravel()[place] += 1
        slope = (errors * (np.pad(moved, widths) - y)).sum()
        np.testing.assert_allclose(below.ravel()[place], slope, rtol=1e-6)
    assert layer.backward(errors, (False,)) == (None,)


def test_another_padding_is_seen() -> None:
    """Control: one cell more before and one less behind changes what comes out."""
    model, _ = _pad((1, 3, 3, 2), [[0, 0], [1, 2], [0, 0], [0, 0]], 5)
    _, other = _pad((1, 3, 3, 2), [[0, 0], [2, 1], [0, 0], [0, 0]], 5)
    raw = _raw(1, (1, 3, 3, 2))
    assert (_forward(other, raw) != Session(model.data).run(raw)).any()


@pytest.mark.parametrize(
    ("widths", "out", "reason"),
    [
        ([[1, 0], [0, 0]], (2, 3), "pads the batch"),
        ([[0, 0], [0, 1]], (1, 3), "its output is"),
        ([[0, 0], [-1, 1]], (1, 3), "paddings"),
    ],
)
def test_paddings_that_cannot_be_trained_are_refused(
    widths: list[list[int]], out: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        _layer(PAD, (1, 3), out, widths, zero=0)


@pytest.mark.parametrize(
    ("code", "shape", "out", "constant"),
    [
        (EXPAND_DIMS, (1, 4, 3), (1, 1, 4, 3), 1),
        (EXPAND_DIMS, (1, 4, 3), (1, 4, 3, 1), -1),
        (EXPAND_DIMS, (1, 4, 3), (1, 1, 4, 3), 0),  # the new axis stands before the batch of one
        (SQUEEZE, (1, 1, 4, 1), (1, 4), None),
    ],
)
def test_reshaping_keeps_values_and_errors(
    code: int, shape: tuple[int, ...], out: tuple[int, ...], constant: int | None
) -> None:
    options = (tflite.BuiltinOptions.SqueezeOptions, _squeeze) if code == SQUEEZE else None
    values = None if constant is None else np.array(constant)
    network = shaping(code, shape, out, constant=values, options=options)
    model = Model.parse(network.write())
    layer = LAYERS[model.operators[0].name](model, model.operators[0])
    raw = _raw(3, shape)
    np.testing.assert_array_equal(_forward(layer, raw), Session(model.data).run(raw))
    errors = np.random.default_rng(1).normal(size=(5, *out[1:])).astype(np.float32)
    (below,) = layer.backward(errors, (True,))
    assert below is not None
    assert below.shape == raw.shape
    np.testing.assert_array_equal(below.ravel(), errors.ravel())


def _squeeze(builder: Any) -> int:
    tflite.SqueezeOptionsStartSqueezeDimsVector(builder, 2)
    for axis in (-1, 1):
        builder.PrependInt32(axis)
    axes = builder.EndVector()
    tflite.SqueezeOptionsStart(builder)
    tflite.SqueezeOptionsAddSqueezeDims(builder, axes)
    return int(tflite.SqueezeOptionsEnd(builder))


def test_a_shape_without_the_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="mixes the samples"):
        _layer(SQUEEZE, (1, 4, 3), (4, 3), None, zero=0)
