# SPDX-License-Identifier: Apache-2.0
"""The pools: forward against the real interpreter, errors against finite differences.

The oracle of the errors is the definition of a pool, written out here cell by cell in float64.
"""

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
from tests.client.networks import pool, shaping

AVERAGE, MAX = tflite.BuiltinOperator.AVERAGE_POOL_2D, tflite.BuiltinOperator.MAX_POOL_2D
SAME, VALID = tflite.Padding.SAME, tflite.Padding.VALID
NONE, RELU, RELU_N1_TO_1, RELU6 = 0, 1, 2, 3


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """Any window; with SAME it may be larger than the image."""
    padding = draw(st.sampled_from([SAME, VALID]))
    kernel = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    least = kernel if padding == VALID else (1, 1)
    return {
        "kernel": kernel,
        "stride": (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        "size": tuple(draw(st.integers(low, 10)) for low in least),
        "padding": padding,
        "activation": draw(st.sampled_from([NONE, NONE, RELU, RELU_N1_TO_1, RELU6])),
    }


def _places(geometry: dict[str, Any]) -> tuple[int, int]:
    """Windows along both axes, and the formula of TFLite's own documentation for them."""
    down, right = (
        -(-size // stride) if geometry["padding"] == SAME else (size - kernel) // stride + 1
        for size, kernel, stride in zip(
            geometry["size"], geometry["kernel"], geometry["stride"], strict=True
        )
    )
    return down, right


def _layer(
    code: int, geometry: dict[str, Any], channels: int, *, scale: float, zero: int
) -> tuple[Model, Layer]:
    window = {key: geometry[key] for key in ("padding", "stride", "kernel", "activation")}
    network = shaping(
        code,
        (1, *geometry["size"], channels),
        (1, *_places(geometry), channels),
        options=pool(**window),
        scales=(scale, scale),
        zeros=(zero, zero),
    )
    model = Model.parse(network.write())
    return model, LAYERS[model.operators[0].name](model, model.operators[0])


def _forward(layer: Layer, raw: Any) -> Any:
    return layer.forward(raw.astype(np.float32) - layer.input.zero_point) + layer.output.zero_point


@pytest.mark.parametrize("code", [AVERAGE, MAX], ids=["average", "max"])
@settings(max_examples=250, deadline=None)
@given(
    geometries(),
    st.integers(0, 2**32),
    st.integers(1, 20),
    st.floats(2.0**-10, 0.5, width=32),
    st.sampled_from([-128, 127, 0]) | st.integers(-128, 127),
)
def test_forward_is_bit_exact(
    code: int, geometry: dict[str, Any], seed: int, channels: int, scale: float, zero: int
) -> None:
    model, layer = _layer(code, geometry, channels, scale=scale, zero=zero)
    rng = np.random.default_rng(seed)
    raw = rng.integers(-128, 128, (8, *geometry["size"], channels)).astype(np.int8)
    np.testing.assert_array_equal(_forward(layer, raw), Session(model.data).run(raw))


def test_halves_of_both_signs_go_away_from_zero() -> None:
    """And they do occur: rounded half to even or up, this would differ from the runtime."""
    geometry = {"kernel": (1, 2), "stride": (1, 2), "size": (1, 6), "padding": VALID}
    model, layer = _layer(AVERAGE, {**geometry, "activation": NONE}, 1, scale=0.1, zero=7)
    raw: Any = np.array([[[[-3], [-2], [2], [3], [-1], [0]]]], np.int8)
    made = Session(model.data).run(raw)
    assert made.ravel().tolist() == [-3, 3, -1]
    np.testing.assert_array_equal(_forward(layer, raw), made)
    exact = raw.reshape(3, 2).mean(axis=1)
    assert np.rint(exact).tolist() != made.ravel().tolist(), "control: half to even"
    assert np.floor(exact + 0.5).tolist() != made.ravel().tolist(), "control: half up"


def test_a_global_pool_of_a_large_image_is_exact() -> None:
    """The largest sums that a window makes."""
    geometry = {"kernel": (256, 256), "stride": (1, 1), "size": (256, 256), "padding": VALID}
    model, layer = _layer(AVERAGE, {**geometry, "activation": NONE}, 1, scale=0.1, zero=127)
    raw: Any = np.full((2, 256, 256, 1), -128, np.int8)
    raw[1, :128] = -127  # the mean is -127.5
    np.testing.assert_array_equal(_forward(layer, raw), Session(model.data).run(raw))


def _plain(code: int, geometry: dict[str, Any], x: Any) -> Any:
    """The real values of the pool of real values, by definition."""
    y = np.zeros((len(x), *_places(geometry), x.shape[3]))
    (height, width), (kh, kw), (sh, sw) = (geometry[key] for key in ("size", "kernel", "stride"))
    same = geometry["padding"] == SAME
    top = max((y.shape[1] - 1) * sh + kh - height, 0) // 2 if same else 0
    left = max((y.shape[2] - 1) * sw + kw - width, 0) // 2 if same else 0
    for row, column in np.ndindex(y.shape[1:3]):
        r, c = row * sh - top, column * sw - left
        cells = x[:, max(r, 0) : r + kh, max(c, 0) : c + kw]
        y[:, row, column] = (np.mean if code == AVERAGE else np.max)(cells, axis=(1, 2))
    low, high = {NONE: (-9e9, 9e9), RELU: (0, 9e9), RELU_N1_TO_1: (-1, 1), RELU6: (0, 6)}[
        geometry["activation"]
    ]
    return np.clip(y, low, high)


@pytest.mark.parametrize("code", [AVERAGE, MAX], ids=["average", "max"])
@settings(max_examples=100, deadline=None)
@given(geometries(), st.integers(0, 2**32), st.integers(1, 3))
def test_errors_follow_finite_differences(
    code: int, geometry: dict[str, Any], seed: int, channels: int
) -> None:
    rng = np.random.default_rng(seed)
    scale = 8.0 / 100
    _, layer = _layer(code, geometry, channels, scale=scale, zero=0)
    # No two cells of a channel are equal: a maximum is differentiable.
    values = rng.permuted(
        np.tile(np.setdiff1d(np.arange(-100, 101), [0])[:, None], (1, channels)), axis=0
    )[: np.prod(geometry["size"])]
    x = values.reshape(1, *geometry["size"], channels).astype(np.float64)
    layer.forward(x.astype(np.float32))
    exact = _plain(code, geometry, x * scale)
    errors = rng.normal(size=exact.shape).astype(np.float32)
    # Rounding may carry a mean over the border of the activation: no error there.
    low, high = {RELU: (0, 9e9), RELU_N1_TO_1: (-1, 1), RELU6: (0, 6)}.get(
        geometry["activation"], (-9e9, 9e9)
    )
    free = _plain(code, {**geometry, "activation": NONE}, x * scale)
    errors[(np.abs(free - low) < scale) | (np.abs(free - high) < scale)] = 0
    (below,) = layer.backward(errors, (True,))
    assert below is not None
    assert below.dtype == np.float32
    step = scale / 16
    for place in rng.choice(x.size, min(x.size, 12), replace=False):
        moved = x.copy() * scale
        moved.ravel()[place] += step
        slope = (errors * (_plain(code, geometry, moved) - exact)).sum() / step
        np.testing.assert_allclose(below.ravel()[place], slope, atol=1e-5)
    assert layer.backward(errors, (False,)) == (None,)


def test_the_first_of_equal_maxima_gets_the_error() -> None:
    geometry = {"kernel": (2, 2), "stride": (1, 1), "size": (3, 3), "padding": SAME}
    _, layer = _layer(MAX, {**geometry, "activation": NONE}, 1, scale=0.1, zero=-128)
    layer.forward(np.zeros((1, 3, 3, 1), np.float32))
    errors = np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3, 1)
    (below,) = layer.backward(errors, (True,))
    assert below is not None
    np.testing.assert_array_equal(below, errors)  # each window starts at its own cell
    layer.forward(np.array([0, 0, 0, 0, 5, 0, 0, 0, 0], np.float32).reshape(1, 3, 3, 1))
    (below,) = layer.backward(errors, (True,))
    assert below is not None
    assert below[0, 1, 1, 0] == 1 + 2 + 4 + 5


def test_an_activation_stops_errors_and_the_ends_of_int8_do_not() -> None:
    geometry = {"kernel": (1, 1), "stride": (1, 1), "size": (1, 4), "padding": VALID}
    x = np.array([-128, 0, 60, 127], np.float32).reshape(1, 1, 4, 1)
    passed = {
        NONE: [1, 1, 1, 1],
        RELU: [0, 0, 1, 1],
        RELU_N1_TO_1: [0, 1, 0, 0],
        RELU6: [0, 0, 1, 0],
    }
    for code in (AVERAGE, MAX):
        for activation, expected in passed.items():
            _, layer = _layer(code, {**geometry, "activation": activation}, 1, scale=0.05, zero=0)
            layer.forward(x)
            (below,) = layer.backward(np.ones((1, 1, 4, 1), np.float32), (True,))
            assert below is not None
            assert below.ravel().tolist() == expected


def test_a_pool_that_would_rescale_is_refused() -> None:
    network = shaping(
        MAX,
        (1, 4, 4, 1),
        (1, 2, 2, 1),
        options=pool(padding=VALID, stride=(2, 2), kernel=(2, 2), activation=NONE),
        scales=(0.1, 0.2),
    )
    model = Model.parse(network.write())
    with pytest.raises(ModelError, match="differ in scale or zero point"):
        LAYERS["MAX_POOL_2D"](model, model.operators[0])
