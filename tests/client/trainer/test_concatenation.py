# SPDX-License-Identifier: Apache-2.0
"""CONCATENATION: forward against the real interpreter, backward against NumPy's own pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tflite
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import ModelError
from tests.client.networks import Operand, concatenation, joined
from tests.client.trainer.elementwise import (
    centred,
    from_runtime,
    made_layer,
    real,
    samples,
    scales,
    slopes,
    zeros,
)

CODE = tflite.BuiltinOperator.CONCATENATION
Case = tuple[list[Operand], Operand, int, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Up to four tensors, some of them constant, along any axis within a sample."""
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    sample = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    axis = draw(st.integers(1, len(sample)))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    scale, zero = draw(scales), draw(zeros)
    operands = []
    for at, length in enumerate(lengths):
        shape = (1, *sample[: axis - 1], length, *sample[axis:])
        is_constant = at > 0 and draw(st.booleans())
        values = rng.integers(-128, 128, shape).astype(np.int8) if is_constant else None
        operands.append(Operand(shape, scale, zero, values))
    order = draw(st.permutations(range(len(operands))))
    shape = (1, *sample[: axis - 1], sum(lengths), *sample[axis:])
    written = axis if draw(st.booleans()) else axis - len(shape)
    return [operands[at] for at in order], Operand(shape, scale, zero), written, seed


@settings(max_examples=300, deadline=None)
@given(cases())
def test_forward_and_backward(case: Case) -> None:
    operands, output, axis, seed = case
    rng = np.random.default_rng(seed)
    model, layer = made_layer(joined(CODE, operands, output, concatenation(axis=axis)))
    values = samples(rng, operands, 3)
    got = layer.forward(*centred(operands, values)) + layer.output.zero_point
    np.testing.assert_array_equal(got, from_runtime(model, operands, values))

    def definition(*reals: Any) -> Any:
        full = [np.broadcast_to(x, (3, *x.shape[1:])) for x in reals]
        return np.concatenate(full, axis=axis)

    errors = rng.normal(0, 1, got.shape).astype(np.float32)
    wanted = tuple(each.values is None for each in operands)
    below = layer.backward(errors, wanted)
    reals = real(operands, values)
    for at, is_wanted in enumerate(wanted):
        if not is_wanted:
            assert below[at] is None
            continue
        expected = slopes(definition, reals, errors, at, step=0.5)
        part = below[at]
        assert part is not None
        np.testing.assert_allclose(part, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("axis", "activation", "scale", "message"),
    [
        (0, 0, 0.1, "axis 0"),
        (-2, 0, 0.1, "axis -2"),
        (1, 1, 0.1, "fused"),
        (1, 0, 0.2, "another scale"),
    ],
)
def test_what_no_sample_can_have_is_refused(
    axis: int, activation: int, scale: float, message: str
) -> None:
    operands = [Operand((1, 3), 0.1, 2), Operand((1, 3), scale, 2)]
    options = concatenation(axis=axis, activation=activation)
    shape = (1, 6) if axis == 1 else (2, 3)
    with pytest.raises(ModelError, match=message):
        made_layer(joined(CODE, operands, Operand(shape, 0.1, 2), options))
