# SPDX-License-Identifier: Apache-2.0
"""SOFTMAX inside a network: forward against the interpreter, backward against its Jacobian."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tflite
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import ModelError, UnsupportedOperatorError
from fedlearn.model import Model
from fedlearn.runtime import Session
from fedlearn.trainer.loss import SoftmaxCrossEntropy
from fedlearn.trainer.tail import Tail
from tests.client.networks import Operand, convolution, fully_connected, joined, softmax
from tests.client.networks import layer as dense_layer
from tests.client.trainer.elementwise import (
    centred,
    exact_errors,
    from_runtime,
    made_layer,
    real,
    samples,
    slopes,
    zeros,
)

CODE = tflite.BuiltinOperator.SOFTMAX
Case = tuple[Operand, Operand, float, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Rows of 1 to 300 classes, from almost equal to one that takes all."""
    classes = draw(st.one_of(st.integers(1, 12), st.sampled_from([16, 17, 64, 300])))
    shape = (1, *draw(st.lists(st.integers(1, 3), max_size=2)), classes)
    scale, beta = draw(st.floats(2.0**-12, 1.0, width=32)), draw(st.sampled_from([1.0, 0.5, 2.0]))
    return (
        Operand(shape, scale, draw(zeros)),
        Operand(shape, 1 / 256, -128),
        beta,
        draw(st.integers(0, 2**32)),
    )


def _definition(beta: float) -> Any:
    def function(x: Any) -> Any:
        powers = np.exp(beta * (x - x.max(axis=-1, keepdims=True)))
        return powers / powers.sum(axis=-1, keepdims=True)

    return function


@settings(max_examples=300, deadline=None)
@given(cases())
def test_forward_is_bit_exact(case: Case) -> None:
    source, output, beta, seed = case
    model, layer = made_layer(joined(CODE, [source], output, softmax(beta)))
    values = samples(np.random.default_rng(seed), [source])
    got = layer.forward(*centred([source], values)) + layer.output.zero_point
    np.testing.assert_array_equal(got, from_runtime(model, [source], values))


def test_the_two_kernels_differ() -> None:
    """Control: with the other machines' kernel some bits differ, by one step."""
    rng = np.random.default_rng(3)
    source, output = Operand((1, 10), 0.04, 5), Operand((1, 10), 1 / 256, -128)
    model, layer = made_layer(joined(CODE, [source], output, softmax()))
    values = samples(rng, [source], 5000)
    expected = from_runtime(model, [source], values)
    usual, other = layer.arithmetics()
    for arithmetic in (usual, other):
        layer.choose(arithmetic)
        off = layer.forward(*centred([source], values)) + layer.output.zero_point - expected
        assert np.abs(off).max() == (arithmetic is other)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_backward_is_the_derivative(case: Case) -> None:
    source, output, beta, seed = case
    rng = np.random.default_rng(seed)
    model, layer = made_layer(joined(CODE, [source], output, softmax(beta)))
    values = samples(rng, [source], 2)
    layer.forward(*centred([source], values))
    errors = exact_errors(rng, values[0].shape)
    (below,) = layer.backward(errors, (True,))
    assert below is not None
    assert below.dtype == np.float32
    assert layer.backward(errors, (False,)) == (None,)

    # The Jacobian at the int8 output: beta (diag(p) - p p^T), in float64.
    p = (from_runtime(model, [source], values).astype(np.float64) + 128) / 256
    jacobian = beta * (p[..., None] * np.eye(p.shape[-1]) - p[..., None] * p[..., None, :])
    expected = np.einsum("...i,...ij->...j", errors, jacobian)
    np.testing.assert_allclose(below, expected, rtol=1e-6, atol=1e-7 * np.abs(errors).max())


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_backward_follows_the_real_function(beta: float) -> None:
    """Finite differences of the float definition, as near as 1/256 in each output allows."""
    rng = np.random.default_rng(4)
    source, output = Operand((1, 6), 0.02, 3), Operand((1, 6), 1 / 256, -128)
    _, layer = made_layer(joined(CODE, [source], output, softmax(beta)))
    values = samples(rng, [source], 50)
    layer.forward(*centred([source], values))
    errors = exact_errors(rng, values[0].shape)
    (below,) = layer.backward(errors, (True,))
    expected = slopes(_definition(beta), real([source], values), errors, 0, step=1e-4)
    near = np.abs(errors).max() * beta * 3 / 256
    assert np.abs(below - expected).max() < near
    # Control: without the sum over the other outputs it would not do.
    own = beta * errors * _definition(beta)(real([source], values)[0])
    assert np.abs(own - expected).max() > 5 * near


def _classifier(beta: float, places: int = 1) -> Model:
    """A layer with weights and the SOFTMAX that a loss takes into itself."""
    rng = np.random.default_rng(6)
    wide = (1,) if places == 1 else (1, places)
    network = dense_layer(
        tflite.BuiltinOperator.FULLY_CONNECTED if places == 1 else tflite.BuiltinOperator.CONV_2D,
        rng,
        input_shape=(*wide, 8) if places == 1 else (1, 1, places, 8),
        output_shape=(*wide, 5) if places == 1 else (1, 1, places, 5),
        weight_shape=(5, 8) if places == 1 else (5, 1, 1, 8),
        options=fully_connected(activation=0)
        if places == 1
        else convolution(padding=0, stride=(1, 1), dilation=(1, 1), activation=0),
        terms=8,
        channel_axis=0,
    )
    (logits,) = network.outputs
    shares = network.tensor(network.tensors[logits]["shape"], scales=1 / 256, zeros=-128)
    network.operator(CODE, [logits], [shares], softmax(beta))
    network.outputs = [shares]
    return Model.parse(network.write())


def test_the_loss_is_that_of_the_interpreters_probabilities() -> None:
    model = _classifier(1.0)
    tail = Tail(model, model.operators[0].inputs[1:])
    x = np.random.default_rng(7).integers(-128, 128, (400, 8)).astype(np.int8)
    labels = Session(model.data).run(x).argmax(axis=1).astype(np.int64)
    shares = (Session(model.data).run(x).astype(np.float64) + 128) / 256
    expected = -np.log(shares[np.arange(len(x)), labels]).sum()
    got = SoftmaxCrossEntropy().judge(tail.forward((x,)), labels).loss
    assert got == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("beta", "places"), [(2.0, 1), (0.5, 1), (1.0, 3)])
def test_a_last_softmax_that_the_loss_is_not_is_refused(beta: float, places: int) -> None:
    model = _classifier(beta, places)
    numbers = model.operators[0].inputs[1:]
    with pytest.raises(UnsupportedOperatorError, match=r"operator 1 \(SOFTMAX\)"):
        Tail(model, numbers)
    assert len(Tail(model, numbers, absorbed=None).layers) == 2


def test_an_output_in_another_grid_is_refused() -> None:
    with pytest.raises(ModelError, match="strange output"):
        made_layer(joined(CODE, [Operand((1, 4), 0.1, 0)], Operand((1, 4), 1 / 256, 0), softmax()))
