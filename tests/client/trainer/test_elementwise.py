# SPDX-License-Identifier: Apache-2.0
"""ADD and MUL: forward against the real interpreter, backward against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tflite
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import ModelError
from fedlearn.trainer.requantisation import Arithmetic
from fedlearn.trainer.runs import broadcast_run
from tests.client.networks import Operand, add, joined, multiplication
from tests.client.trainer.elementwise import (
    centred,
    exact_errors,
    from_runtime,
    made_layer,
    passing,
    real,
    samples,
    scales,
    slopes,
    zeros,
)

ADD, MUL = tflite.BuiltinOperator.ADD, tflite.BuiltinOperator.MUL
OPTIONS: dict[int, Callable[..., Any]] = {ADD: add, MUL: multiplication}
DEFINITIONS: dict[int, Callable[..., Any]] = {ADD: np.add, MUL: np.multiply}
Case = tuple[int, list[Operand], Operand, int, int]


def _broadcast(draw: st.DrawFn, full: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Two shapes, without the batch, that become `full` or part of it."""
    kind = draw(st.sampled_from(["same", "gate", "scalar", "any"]))
    if kind == "any":
        return [tuple(1 if draw(st.booleans()) else n for n in full) for _ in range(2)]
    inner = {"same": full, "gate": (*(1 for _ in full[:-1]), full[-1]), "scalar": (1,) * len(full)}
    return draw(st.permutations([full, inner[kind]]))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Two operands, one or none of them constant, of any shapes that broadcast."""
    kind, seed = draw(st.sampled_from(list(OPTIONS))), draw(st.integers(0, 2**32))
    # Around the length of the vectors, 8 or 16.
    channels = draw(st.sampled_from([1, 3, 8, 16, 19, 33]))
    shapes = _broadcast(draw, (*draw(st.lists(st.integers(1, 6), max_size=2)), channels))
    operands = [Operand((1, *shape), draw(scales), draw(zeros)) for shape in shapes]
    constant = draw(st.sampled_from([None, None, 0, 1]))
    if constant is not None:
        shape, absent = operands[constant].shape, draw(st.integers(0, 3))
        while absent and shape and shape[0] == 1:
            shape, absent = shape[1:], absent - 1
        values = np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)
        operands[constant] = Operand(
            shape, operands[constant].scale, operands[constant].zero, values
        )
    reach = max(each.scale for each in operands)
    if kind == MUL:
        reach = operands[0].scale * operands[1].scale * 255
    # From outputs that are almost all clipped to outputs of a few steps. The runtimes refuse an ADD
    # of 2^19 and more.
    share = draw(st.sampled_from([2.0**-18, 2.0**-6, 0.1, 0.3, 0.5, 1.0, 1.0, 1.7, 40.0]))
    output = np.broadcast_shapes(*shapes)
    made = Operand((1, *output), float(np.float32(reach * share)), draw(zeros))
    # The bounds of an activation in steps of the output have to fit int32.
    activation = draw(st.integers(0, 3)) if made.scale > 2.0**-26 else 0
    return kind, operands, made, activation, seed


@settings(max_examples=300, deadline=None)
@given(cases())
def test_forward_is_bit_exact(case: Case) -> None:
    kind, operands, output, activation, seed = case
    model, layer = made_layer(joined(kind, operands, output, OPTIONS[kind](activation=activation)))
    values = samples(np.random.default_rng(seed), operands)
    got = layer.forward(*centred(operands, values)) + layer.output.zero_point
    np.testing.assert_array_equal(got, from_runtime(model, operands, values))


@pytest.mark.parametrize("shapes", [((1, 40), (1, 40)), ((1, 40), (1, 1)), ((1, 1), (1, 40))])
def test_the_two_codes_of_add_differ(shapes: Any) -> None:
    """Control: where steps are finest, the runtime has what its own code rounds to, no other."""
    rng = np.random.default_rng(1)
    wrong = dict.fromkeys((Arithmetic.TWICE_AWAY, Arithmetic.TWICE_VECTORS), 0)
    for _ in range(30):
        fine = float(np.float32(rng.uniform(0.5, 1) * 2.0 ** -rng.integers(6, 14)))
        operands = [Operand(shapes[0], 0.9, 0), Operand(shapes[1], fine, 3)]
        output = Operand((1, 40), float(np.float32(0.9 / 2**18.3)), 0)
        model, layer = made_layer(joined(ADD, operands, output, add(activation=0)))
        values = samples(rng, operands)
        values[0][:] = 0
        expected = from_runtime(model, operands, values)
        for arithmetic in wrong:
            layer.choose(arithmetic)
            got = layer.forward(*centred(operands, values))
            wrong[arithmetic] += int((got != expected).sum())
    usual, other = layer.arithmetics()
    assert wrong[usual] == 0
    assert wrong[other] > 0


@settings(max_examples=200, deadline=None)
@given(cases())
def test_backward_is_the_derivative(case: Case) -> None:
    kind, operands, output, activation, seed = case
    rng = np.random.default_rng(seed)
    model, layer = made_layer(joined(kind, operands, output, OPTIONS[kind](activation=activation)))
    values = samples(rng, operands, 2)
    layer.forward(*centred(operands, values))
    errors = exact_errors(rng, (2, *output.shape[1:]))
    passed = errors * passing(layer, from_runtime(model, operands, values), activation)
    wanted = tuple(each.values is None for each in operands)
    got = layer.backward(errors, wanted)
    reals = real(operands, values)
    for at, is_wanted in enumerate(wanted):
        if not is_wanted:
            assert got[at] is None
            continue
        expected = slopes(DEFINITIONS[kind], reals, passed, at, step=1.0)
        below = got[at]
        assert below is not None
        assert below.shape == values[at].shape
        assert below.dtype == np.float32
        largest = np.abs(expected).max()
        np.testing.assert_allclose(below, expected, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_errors_stop_at_the_clamp(kind: int) -> None:
    """Finite differences through the clamp itself, wherever no step of int8 lies on its edge."""
    rng = np.random.default_rng(6)
    operands = [Operand((1, 50), 0.06, 9), Operand((1, 50), 0.05, -7)]
    network = joined(kind, operands, Operand((1, 50), 0.03, -100), OPTIONS[kind](activation=3))
    _, layer = made_layer(network)
    values = samples(rng, operands, 20)
    layer.forward(*centred(operands, values))
    reals = real(operands, values)

    def definition(a: Any, b: Any) -> Any:
        return np.clip(DEFINITIONS[kind](a, b), 0.0, 6.0)

    edge = definition(*reals) - DEFINITIONS[kind](*reals)
    inner = (edge == 0) & (np.abs(definition(*reals) - 3) < 2.9)
    clear = (np.abs(edge) > 0.1) | inner
    assert 0.1 < inner.mean() < 0.8
    errors = rng.normal(0, 1, inner.shape).astype(np.float32) * clear
    for at, below in enumerate(layer.backward(errors, (True, True))):
        expected = slopes(definition, reals, errors, at, step=1e-5)
        assert below is not None
        np.testing.assert_allclose(below, expected, rtol=1e-5, atol=1e-6)
        # Control: with the clamp left out the difference is seen.
        unclamped = slopes(DEFINITIONS[kind], reals, errors, at, step=1e-5)
        assert np.abs(below - unclamped).max() > 0.1


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_one_tensor_on_both_sides(kind: int) -> None:
    """x + x and x * x: the errors of both inputs add up to those of 2x and of x squared."""
    rng = np.random.default_rng(2)
    operand = Operand((1, 5, 7), 0.02, 4)
    network = joined(kind, [operand], Operand((1, 5, 7), 0.06, 3), OPTIONS[kind](activation=0))
    network.operators[-1]["inputs"] *= 2
    model, layer = made_layer(network)
    values = samples(rng, [operand])
    x = centred([operand], values)[0]
    got = layer.forward(x, x) + layer.output.zero_point
    expected = from_runtime(model, [operand], values)
    np.testing.assert_array_equal(got, expected)
    errors = exact_errors(rng, x.shape) * passing(layer, expected)
    one, two = layer.backward(errors, (True, True))
    slope = 2.0 if kind == ADD else 2 * x.astype(np.float64) * operand.scale
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(one + two, errors * slope, rtol=1e-5)


def test_a_constant_with_a_batch_is_refused() -> None:
    """It would be another constant for each sample of a batch."""
    values = np.ones((3, 4), np.int8)
    operands = [Operand((3, 4), 0.1, 0), Operand((3, 4), 0.1, 0, values)]
    with pytest.raises(ModelError, match="mixes the samples"):
        made_layer(joined(ADD, operands, Operand((3, 4), 0.1, 0), add(activation=0)))


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ((4, 5, 6), (4, 5, 6), (120, False)),
        ((4, 5, 6), (1, 1, 6), (6, False)),
        ((1, 5, 6), (4, 5, 6), (30, False)),
        ((4, 5, 6), (1, 1, 1), (120, True)),
        ((4, 5, 1), (4, 5, 6), (6, True)),
        ((4, 5, 1), (4, 1, 1), (5, True)),
        ((1,), (1,), (1, False)),
        ((3, 2, 1), (1, 2, 8), (8, True)),
        ((2, 2, 8), (1, 2, 1), (1, False)),
        ((2, 1, 2, 1), (1, 3, 2, 8), (1, False)),
    ],
)
def test_runs(one: Any, two: Any, expected: tuple[int, bool]) -> None:
    assert broadcast_run(one, two) == expected
