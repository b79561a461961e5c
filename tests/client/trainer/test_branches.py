# SPDX-License-Identifier: Apache-2.0
"""A tail with branches: a gate, a residual and two halves side by side, from end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tflite

from fedlearn.model import Model
from fedlearn.trainer.layer import Layer
from fedlearn.trainer.selftest import match
from fedlearn.trainer.tail import Tail
from tests.client.networks import (
    Network,
    add,
    concatenation,
    fully_connected,
    layer,
    multiplication,
)

OPS = tflite.BuiltinOperator
UNITS, CLASSES = 19, 5


def _dense(rng: np.random.Generator, network: Network | None, terms: int, out: int) -> Network:
    return layer(
        OPS.FULLY_CONNECTED,
        rng,
        input_shape=(1, terms),
        output_shape=(1, out),
        weight_shape=(out, terms),
        options=fully_connected(activation=0),
        terms=terms,
        channel_axis=0,
        per_channel=False,
        input_zero=0,
        network=network,
        source=network.outputs[0] if network else None,
    )


def _network(rng: np.random.Generator) -> Network:
    """logits = W2 [r, x] with x = W1 input and r = x sigmoid(x) + x."""
    network = _dense(rng, None, 12, UNITS)
    (x,) = network.outputs
    # x up to 8 in real units, where a sigmoid bends, and wide enough that next to no clamp is met,
    # which the float definition does not have.
    scale = np.float32(0.08)
    step = scale / np.float32(200)
    source, weight, bias = (network.tensors[at]["scales"] for at in (0, 1, 2))
    source[:], bias[:] = step / weight, step
    network.tensors[x]["scales"][:] = scale
    shape = (1, UNITS)
    gate = network.tensor(shape, scales=1 / 256, zeros=-128)
    network.operator(OPS.LOGISTIC, [x], [gate])
    gated = network.tensor(shape, scales=scale, zeros=-20)
    network.operator(OPS.MUL, [x, gate], [gated], multiplication(activation=0))
    summed = network.tensor(shape, scales=2 * scale, zeros=4)
    network.operator(OPS.ADD, [gated, x], [summed], add(activation=0))
    same = network.tensor(shape, scales=2 * scale, zeros=4)
    network.operator(OPS.QUANTIZE, [x], [same])
    both = network.tensor((1, 2 * UNITS), scales=2 * scale, zeros=4)
    network.operator(OPS.CONCATENATION, [summed, same], [both], concatenation(axis=-1))
    network.outputs = [both]
    return _dense(rng, network, 2 * UNITS, CLASSES)


def _real(model: Model, index: int) -> Any:
    return model.array(index).astype(np.float64) * model.tensors[index].scales


def _expected(model: Model, x: Any, weight: Any, errors: Any) -> Any:
    """Gradient of sum(errors * logits) by W1: central differences of the float definition."""
    tensors = {op.index: op.inputs for op in model.operators if op.name == "FULLY_CONNECTED"}
    first, last = (tensors[at] for at in sorted(tensors))
    bias, head = _real(model, first[2]), _real(model, last[1])

    def loss(moved: Any) -> float:
        a = x @ moved.T + bias
        r = a / (1 + np.exp(-a)) + a
        return float((errors * (np.concatenate([r, a], axis=1) @ head.T)).sum())

    gradient = np.zeros(weight.shape)
    for place in np.ndindex(weight.shape):
        step = np.zeros(weight.shape)
        step[place] = 1e-5
        gradient[place] = (loss(weight + step) - loss(weight - step)) / 2e-5
    return gradient


def _likeness(a: Any, b: Any) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("seed", range(3))
def test_a_gradient_comes_through_every_branch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = Model.parse(_network(rng).write())
    first = next(op for op in model.operators if op.name == "FULLY_CONNECTED")
    tail = Tail(model, [first.inputs[1]])
    samples = rng.integers(-40, 41, (40, 12)).astype(np.int8)
    match(tail, model, samples, samples=40)

    errors = rng.normal(0, 1, (40, CLASSES)).astype(np.float32)
    x = samples * model.tensors[model.entry].scale
    weight = _real(model, first.inputs[1])
    expected = _expected(model, x, weight, errors)
    assert _likeness(_gradient(tail, samples, errors), expected) > 0.9995
    # Control: with one branch cut the gradient points elsewhere.
    for part in tail.layers:
        if part.operator.name in {"LOGISTIC", "MUL", "ADD", "QUANTIZE"}:
            assert _likeness(_without(part, tail, samples, errors), expected) < 0.9985


def _gradient(tail: Tail, samples: Any, errors: Any) -> Any:
    tail.forward((samples,))
    tail.backward(errors)
    gradient = tail.weighted[0]._weight_gradient
    assert gradient is not None
    return gradient.astype(np.float64)


def _without(part: Layer, tail: Tail, samples: Any, errors: Any) -> Any:
    whole = part.backward
    part.backward = lambda errors, wanted: whole(0 * errors, wanted)  # type: ignore[method-assign]
    try:
        return _gradient(tail, samples, errors)
    finally:
        part.backward = whole  # type: ignore[method-assign]
