# SPDX-License-Identifier: Apache-2.0
"""Each layer: forward against the real interpreter, gradients against finite differences.

The forward oracle is the runtime itself, every output bit, on random geometries. A layer's
accumulator is linear in its weights and in its input, so a finite difference of the plain
definition of the operator, written out here in integers, is its exact gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tflite
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedlearn.errors import TrainerError
from fedlearn.model import Model
from fedlearn.runtime import Session, is_litert
from fedlearn.trainer import conv2d, depthwise_conv2d
from fedlearn.trainer.exact import EXACT_ERRORS, EXACT_TERMS, column_sums, product
from fedlearn.trainer.operators import LAYERS
from fedlearn.trainer.parameters import Parameter
from fedlearn.trainer.requantisation import Arithmetic
from fedlearn.trainer.selftest import match
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.weighted import WeightedLayer
from tests.client.networks import Network, convolution, depthwise, fully_connected, layer

CONV, DEPTHWISE, DENSE = (
    tflite.BuiltinOperator.CONV_2D,
    tflite.BuiltinOperator.DEPTHWISE_CONV_2D,
    tflite.BuiltinOperator.FULLY_CONNECTED,
)


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """A window that fits its image, with any padding, stride and dilation."""
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    stride = (1, 1) if max(dilation) > 1 else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    size = tuple(
        draw(st.integers((k - 1) * d + 1, (k - 1) * d + 9))
        for k, d in zip(kernel, dilation, strict=True)
    )
    return {
        "kernel": kernel,
        "dilation": dilation,
        "stride": stride,
        "size": size,
        "padding": draw(st.sampled_from([tflite.Padding.SAME, tflite.Padding.VALID])),
        "activation": draw(st.sampled_from([0, 1, 2, 3])),
    }


def _places(geometry: dict[str, Any]) -> tuple[int, int]:
    result = []
    for size, kernel, stride, dilation in zip(
        geometry["size"], geometry["kernel"], geometry["stride"], geometry["dilation"], strict=True
    ):
        span = (kernel - 1) * dilation + 1
        same = geometry["padding"] == tflite.Padding.SAME
        result.append(-(-size // stride) if same else (size - span) // stride + 1)
    return result[0], result[1]


def _network(kind: int, geometry: dict[str, Any], seed: int, channels: int, out: int) -> Network:
    rng = np.random.default_rng(seed)
    places = _places(geometry)
    window = {key: geometry[key] for key in ("padding", "stride", "dilation", "activation")}
    common: dict[str, Any] = {
        "input_shape": (1, *geometry["size"], channels),
        "input_zero": int(rng.integers(-128, 128)),
        "output_zero": int(rng.integers(-60, 61)),
    }
    taps = geometry["kernel"][0] * geometry["kernel"][1]
    if kind == CONV:
        return layer(
            kind,
            rng,
            output_shape=(1, *places, out),
            weight_shape=(out, *geometry["kernel"], channels),
            options=convolution(**window),
            terms=taps * channels,
            channel_axis=0,
            **common,
        )
    return layer(
        kind,
        rng,
        output_shape=(1, *places, channels * out),
        weight_shape=(1, *geometry["kernel"], channels * out),
        options=depthwise(**window, multiplier=out),
        terms=taps,
        channel_axis=3,
        **common,
    )


def _layer(network: Network) -> tuple[Model, WeightedLayer]:
    model = Model.parse(network.write())
    found = LAYERS[model.operators[0].name](model, model.operators[0])
    assert isinstance(found, WeightedLayer)
    found.mark({found.weight_index, found.bias_index})
    assert isinstance(found, WeightedLayer)
    return model, found


def _centred(found: WeightedLayer, inputs: Any) -> Any:
    return inputs.astype(np.float32) - found.input.zero_point


def _arithmetic(kind: str, *, delegates: bool) -> Arithmetic:
    """What the runtimes are known to do: only ai-edge-litert uses XNNPACK for int8."""
    litert = is_litert()
    if delegates and litert:
        return Arithmetic.FLOAT32
    if kind == "DEPTHWISE_CONV_2D":
        return Arithmetic.TWICE_VECTORS if litert else Arithmetic.TWICE_AWAY
    return Arithmetic.TWICE_UP


def _assert_same_bits(network: Network, seed: int, *, delegates: bool) -> None:
    model, found = _layer(network)
    shape = model.tensors[0].shape[1:]
    inputs = np.random.default_rng(seed).integers(-128, 128, (120, *shape)).astype(np.int8)
    found.choose(_arithmetic(found.operator.name, delegates=delegates))
    expected = Session(model.data, delegates=delegates).run(inputs)
    got = found.forward(_centred(found, inputs)) + found.output.zero_point
    np.testing.assert_array_equal(got, expected)


@settings(max_examples=300, deadline=None)
@given(geometries(), st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 9), st.booleans())
def test_convolution_forward_is_bit_exact(
    geometry: dict[str, Any], seed: int, channels: int, out: int, delegates: bool
) -> None:
    _assert_same_bits(_network(CONV, geometry, seed, channels, out), seed, delegates=delegates)


@settings(max_examples=300, deadline=None)
@given(geometries(), st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_depthwise_forward_is_bit_exact(
    geometry: dict[str, Any], seed: int, channels: int, out: int, delegates: bool
) -> None:
    _assert_same_bits(_network(DEPTHWISE, geometry, seed, channels, out), seed, delegates=delegates)


def _dense_network(seed: int, terms: int, out: int, activation: int, **options: Any) -> Network:
    rng = np.random.default_rng(seed)
    return layer(
        DENSE,
        rng,
        input_shape=(1, terms),
        output_shape=(1, out),
        weight_shape=(out, terms),
        options=fully_connected(activation=activation),
        terms=terms,
        channel_axis=0,
        per_channel=options.pop("per_channel", False),
        input_zero=int(rng.integers(-128, 128)),
        output_zero=int(rng.integers(-60, 61)),
        **options,
    )


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 7, 64, 514, 515, 1500]),
    st.integers(1, 20),
    st.sampled_from([0, 1, 2, 3]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
# One output of 2,400 shows that the product of the scales is rounded to float32.
@example(109, 515, 20, 0, False, False, False)
def test_fully_connected_forward_is_bit_exact(
    seed: int,
    terms: int,
    out: int,
    activation: int,
    bias: bool,
    per_channel: bool,
    delegates: bool,
) -> None:
    # tflite-runtime 2.14 is older than per-channel scales of this operator.
    per_channel = per_channel and is_litert()
    network = _dense_network(seed, terms, out, activation, bias=bias, per_channel=per_channel)
    _assert_same_bits(network, seed, delegates=delegates)


def test_the_whole_digits_network_is_bit_exact(digits: Model, digits_test: Any) -> None:
    """Every layer, every output, 1,000 real images: 2.4 million int8 values."""
    tail = Tail(digits, [tensor.index for tensor in trainable_tensors(digits, "all")])
    for delegates in (False, True):
        match(tail, digits, digits_test.inputs, samples=1000, delegates=delegates)
        (x,) = tail.centred((digits_test.inputs,)).values()
        for part in tail.layers:
            x = part.forward(x)
            session = Session(digits.cut([part.output.index]), delegates=delegates)
            expected = session.run(digits_test.inputs)
            np.testing.assert_array_equal(x + part.output.zero_point, expected)


def test_a_wrong_arithmetic_is_seen(digits: Model, digits_test: Any) -> None:
    """Control: with a rounding that this runtime does not use, some bits differ."""
    tail = Tail(digits, [tensor.index for tensor in trainable_tensors(digits, "all")])
    first = tail.layers[0]
    assert isinstance(first, WeightedLayer)
    first.choose(Arithmetic.FLOAT32)
    got = first.forward(*tail.centred((digits_test.inputs,)).values()) + first.output.zero_point
    expected = Session(digits.cut([first.output.index])).run(digits_test.inputs)
    assert (got != expected).any()
    assert np.abs(got - expected).max() == 1


def test_the_self_test_refuses_a_runtime_that_computes_otherwise(
    digits: Model, digits_test: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = Tail(digits, [tensor.index for tensor in trainable_tensors(digits, "all")])
    real = Session.run_all
    monkeypatch.setattr(
        Session, "run_all", lambda self, x: tuple(np.clip(y, -127, 126) for y in real(self, x))
    )
    with pytest.raises(TrainerError, match=r"operator 0 \(CONV_2D\)"):
        match(tail, digits, digits_test.inputs)


def _plain(kind: int, geometry: dict[str, Any], x: Any, w: Any) -> Any:
    """The operator's definition in int64, weights as they lie in the file: sums of products."""
    rows, columns = _places(geometry)
    out = w.shape[0] if kind == CONV else w.shape[3]
    y = np.zeros((len(x), rows, columns, out), np.int64)
    (height, width), (kh, kw) = geometry["size"], geometry["kernel"]
    (sh, sw), (dh, dw) = geometry["stride"], geometry["dilation"]
    same = geometry["padding"] == tflite.Padding.SAME
    top = max((rows - 1) * sh + (kh - 1) * dh + 1 - height, 0) // 2 if same else 0
    left = max((columns - 1) * sw + (kw - 1) * dw + 1 - width, 0) // 2 if same else 0
    for row, column, i, j in np.ndindex(rows, columns, kh, kw):
        r, c = row * sh + i * dh - top, column * sw + j * dw - left
        if 0 <= r < height and 0 <= c < width:
            if kind == CONV:
                y[:, row, column] += x[:, r, c] @ w[:, i, j].T
            else:
                y[:, row, column] += np.repeat(x[:, r, c], out // x.shape[3], axis=1) * w[0, i, j]
    return y


@pytest.mark.parametrize("kind", [CONV, DEPTHWISE])
@settings(max_examples=25, deadline=None)
@given(geometries(), st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3))
def test_window_gradients_are_exact(
    kind: int, geometry: dict[str, Any], seed: int, channels: int, out: int
) -> None:
    rng = np.random.default_rng(seed)
    model, found = _layer(_network(kind, geometry, seed, channels, out))
    x = rng.integers(-255, 256, (3, *geometry["size"], channels))
    w = model.array(1).astype(np.int64)
    found.forward(x.astype(np.float32))
    plain = _plain(kind, geometry, x, w)
    errors = rng.integers(-127, 128, plain.shape)
    rows = errors.reshape(-1, errors.shape[-1]).astype(np.float32)

    gradient = found._gradient(rows).reshape(-1)
    for k in rng.choice(w.size, min(w.size, 12), replace=False):
        step = np.zeros(w.size, np.int64)
        step[k] = 1
        moved = _plain(kind, geometry, x, w + step.reshape(w.shape))
        assert (errors * (moved - plain)).sum() == gradient[k]

    below = found._to_input(rows)
    assert below.shape == x.shape
    for k in rng.choice(x.size, min(x.size, 12), replace=False):
        step = np.zeros(x.size, np.int64)
        step[k] = 1
        moved = _plain(kind, geometry, x + step.reshape(x.shape), w)
        assert (errors * (moved - plain)).sum() == below.reshape(-1)[k]


@pytest.mark.parametrize(
    ("size", "kernel", "batch"),
    [((600, 3), (2, 2), 2), ((60, 4), (3, 3), 40), ((24, 24), (23, 23), 1)],
    ids=["more lines than a float32 sums", "more samples", "more taps"],
)
@pytest.mark.parametrize("stride", [(1, 1), (1, 2)], ids=["runs", "columns"])
def test_depthwise_sums_of_the_largest_operands_are_exact(
    size: tuple[int, int], kernel: tuple[int, int], batch: int, stride: tuple[int, int]
) -> None:
    geometry = {
        "kernel": kernel,
        "dilation": (1, 1),
        "stride": stride,
        "size": size,
        "padding": tflite.Padding.VALID,
        "activation": 0,
    }
    _, found = _layer(_network(DEPTHWISE, geometry, 1, 2, 2))
    x = np.full((batch, *size, 2), 255)
    x[:, 0, 0] = 254  # makes sums odd, which float32 cannot hold beyond 2^24
    w = np.full((1, *kernel, 4), 127)
    found.weight = Parameter(w.reshape(-1, 4).astype(np.int8))
    plain = _plain(DEPTHWISE, geometry, x, w)
    got = found._accumulate(x.astype(np.float32))
    np.testing.assert_array_equal(got, plain.reshape(-1, 4))

    errors = np.full(plain.shape, 127)
    gradient = found._gradient(errors.reshape(-1, 4).astype(np.float32))
    for k in range(0, len(gradient), max(len(gradient) // 6, 1)):
        step = np.zeros((len(gradient), 4), np.int64)
        step[k] = 1
        expected = (errors * _plain(DEPTHWISE, geometry, x, step.reshape(w.shape))).sum((0, 1, 2))
        np.testing.assert_array_equal(gradient[k], expected)
    assert max(plain.max(), gradient.max()) > 2**24, "control: float32 alone does not suffice"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 1200), st.integers(1, 8), st.integers(1, 1200))
def test_fully_connected_gradients_are_exact(seed: int, terms: int, out: int, batch: int) -> None:
    """Also where sums pass 2^24, which a single float32 product would not survive."""
    rng = np.random.default_rng(seed)
    model, found = _layer(_dense_network(seed, terms, out, 0))
    x = rng.integers(-255, 256, (batch, terms))
    errors = rng.integers(-127, 128, (batch, out))
    found.forward(x.astype(np.float32))
    w = model.array(1).astype(np.int64)
    np.testing.assert_array_equal(found._accumulate(x.astype(np.float32)), x @ w.T)
    np.testing.assert_array_equal(found._gradient(errors.astype(np.float32)), errors.T @ x)
    np.testing.assert_array_equal(found._to_input(errors.astype(np.float32)), errors @ w)


@pytest.mark.parametrize("kind", [CONV, DEPTHWISE])
@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_of_samples_change_no_bit(
    kind: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = {
        "kernel": (3, 3),
        "dilation": (1, 1),
        "stride": (stride, stride),
        "size": (9, 8),
        "padding": tflite.Padding.SAME,
        "activation": 0,
    }
    _, found = _layer(_network(kind, geometry, 1, 4, 4))
    rng = np.random.default_rng(1)
    x = rng.integers(-255, 256, (7, 9, 8, 4)).astype(np.float32)
    shape = (7 * int(np.prod(_places(geometry))), found.output.shape[-1])
    errors = rng.integers(-127, 128, shape).astype(np.float32)
    made = []
    for numbers in (1 << 20, 2000, 1):
        monkeypatch.setattr(conv2d, "_BLOCK", numbers)
        monkeypatch.setattr(depthwise_conv2d, "_BLOCK", numbers)
        made.append((found._accumulate(x), found._gradient(errors), found._to_input(errors)))
    for each in made[1:]:
        for first, second in zip(made[0], each, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("rows", [EXACT_ERRORS, EXACT_ERRORS + 1])
def test_sums_of_the_largest_errors_are_exact(rows: int) -> None:
    errors = np.full((rows, 2), 127, np.float32)
    errors[0, 1] = 126
    assert column_sums(errors).tolist() == [127 * rows, 127 * rows - 1]
    alone = np.ones(1 << 18, np.float32) @ np.full((1 << 18, 1), 127, np.float32) + 1
    assert int(alone[0]) != 127 * (1 << 18) + 1, "control: a float32 holds no such sum"


@pytest.mark.parametrize("terms", [EXACT_TERMS, EXACT_TERMS + 1, 5000])
def test_products_of_the_largest_operands_are_exact(terms: int) -> None:
    x, w = np.full((1, terms), 255, np.float32), np.full((terms, 1), -128, np.float32)
    w[0] = -127  # an odd sum, which float32 cannot hold beyond 2^24
    assert int(product(x, w)[0, 0]) == -255 * (128 * terms - 1)


def test_float32_alone_would_not_be_exact() -> None:
    """Control for the test above: the largest operands do pass 2^24 in one float32 product."""
    x, w = np.full((1, 784), 255, np.float32), np.full((784, 1), 127, np.float32)
    x[0, 0] = 254
    assert int((x @ w)[0, 0]) != int((x.astype(np.int64) @ w.astype(np.int64))[0, 0])


@pytest.mark.parametrize("kind", [CONV, DEPTHWISE, DENSE])
def test_a_step_follows_the_gradient_in_real_units(kind: int) -> None:
    """From float errors to moved weights and biases, with scales that differ a lot by channel.

    The oracle is the float definition: real weight minus rate times gradient, in float64.
    """
    rng = np.random.default_rng(5)
    geometry = {
        "kernel": (3, 2),
        "dilation": (1, 1),
        "stride": (2, 1),
        "size": (7, 6),
        "padding": tflite.Padding.SAME,
        "activation": 0,
    }
    network = (
        _dense_network(5, 30, 8, 0, per_channel=True)
        if kind == DENSE
        else _network(kind, geometry, 5, 4, 8 if kind == CONV else 2)
    )
    model, found = _layer(network)
    scales = model.tensors[1].scales.astype(np.float64)
    assert scales.max() / scales.min() > 2
    shape = model.tensors[0].shape[1:]
    x = rng.integers(-100, 101, (6, *shape))
    found.mark({found.weight_index, found.bias_index})
    for parameter in found.parameters():
        parameter.thaw()
    found.logits(x.astype(np.float32))  # not clamped: every error passes
    errors = rng.normal(0, 1, (6, *found.output.shape[1:])).astype(np.float32)
    before = found.weight._fixed.astype(np.float64) / 256
    bias_before = found.bias._fixed.astype(np.float64) / 256
    found.backward(errors, (False,))
    rate = 1e-4
    found.update(rate)

    w = model.array(1).astype(np.int64)
    flat = np.zeros(w.size)
    for k in range(w.size):
        step = np.zeros(w.size, np.int64)
        step[k] = 1
        if kind == DENSE:
            moved = x @ (step.reshape(w.shape)).T
        else:
            moved = _plain(kind, geometry, x, step.reshape(w.shape))
        flat[k] = (errors * moved).sum() * found.input.scale
    by_channel = scales if kind == DEPTHWISE else scales.reshape(-1, *[1] * (w.ndim - 1))
    expected = np.clip(w - rate * flat.reshape(w.shape) / by_channel, -127, 127) - w
    moved_by = (found.weight._fixed / 256 - before).reshape(w.shape)
    assert np.abs(expected).max() > 0.2, "the step must be larger than its rounding"
    # Rounding of the errors to int8 and of the step to 1/256.
    np.testing.assert_allclose(moved_by, expected, atol=0.03 * np.abs(expected).max() + 1 / 256)
    rows = errors.reshape(-1, errors.shape[-1]).sum(axis=0)
    bias_expected = -rate * rows / (found.input.scale * scales)
    bias_moved = found.bias._fixed / 256 - bias_before
    np.testing.assert_allclose(
        bias_moved, bias_expected, atol=0.05 * np.abs(bias_expected).max() + 1 / 256
    )


def test_the_product_of_two_scales_is_one_of_float32() -> None:
    """FULLY_CONNECTED: in double this sum would be 75.4999999, and the runtime says 76."""
    # Of an input, a weight and an output that training arrived at.
    scales = [float.fromhex(text) for text in ("0x1.e0beb4p-6", "0x1.796d6ep-9", "0x1.f33c12p-5")]
    network = Network()
    source = network.tensor((1, 1), scales=scales[0], zeros=-128)
    weight = network.tensor((1, 1), scales=scales[1], data=np.zeros((1, 1), np.int8))
    bias = network.tensor(
        (1,),
        tflite.TensorType.INT32,
        scales=scales[0] * scales[1],
        data=np.array([54455], np.int32),
    )
    output = network.tensor((1, 1), scales=scales[2], zeros=-128)
    network.operator(DENSE, [source, weight, bias], [output], fully_connected(activation=0))
    network.inputs, network.outputs = [source], [output]
    model = Model.parse(network.write())
    x = np.array([[0]], np.int8)
    assert Session(model.data).run(x).item() == 76 - 128
    tail = Tail(model, [weight])
    match(tail, model, x)
    assert tail.layers[0].forward(np.zeros((1, 1), np.float32)).item() == 76
