# SPDX-License-Identifier: Apache-2.0
"""The losses against the textbook's, in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fedlearn.errors import ConfigError, TrainerError
from fedlearn.model import Model
from fedlearn.trainer.loss import (
    MeanSquaredError,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    make_loss,
)
from fedlearn.trainer.powers import POWERS


def test_the_table_is_correctly_rounded() -> None:
    exact = 2.0 ** (30 - np.arange(1024, dtype=np.longdouble) / 1024)
    assert POWERS.tolist() == np.rint(exact).astype(np.int64).tolist()


@given(
    arrays(np.float32, (4, 10), elements=st.floats(-60, 60, width=32)),
    arrays(np.int64, 4, elements=st.integers(0, 9)),
)
def test_errors_and_loss(logits: NDArray[Any], labels: NDArray[Any]) -> None:
    judged = SoftmaxCrossEntropy().judge(logits, labels)
    exact = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    rows = np.arange(4)
    # Below the table's reach of 2^-30 the probability is zero, the true loss just larger.
    loss = -np.log(exact[rows, labels]).sum()
    assert abs(judged.loss - loss) < 2e-3 * (1 + loss)
    exact[rows, labels] -= 1
    # Half a step of the exponent is 3.4e-4 of a probability; half a step of the result 1.5e-5.
    np.testing.assert_allclose(judged.errors, exact, atol=4e-4)
    assert judged.hits == (logits.argmax(axis=1) == labels).sum()


def test_errors_are_multiples_of_the_grid() -> None:
    """So that every later rounding starts from the same bits on every machine."""
    logits = np.random.default_rng(0).normal(0, 5, (50, 10)).astype(np.float32)
    errors = SoftmaxCrossEntropy().judge(logits, np.zeros(50, np.int64)).errors * 2.0**15
    np.testing.assert_array_equal(errors, np.rint(errors))
    # Rounded shares need not sum to one, but nearly.
    assert np.abs(errors.sum(axis=1)).max() <= 5


@given(
    arrays(np.float32, (4, 5), elements=st.floats(-60, 60, width=32)),
    arrays(np.uint8, (4, 5), elements=st.integers(0, 1)),
)
def test_sigmoid_errors_and_loss(outputs: NDArray[Any], labels: NDArray[Any]) -> None:
    judged = SigmoidCrossEntropy().judge(outputs, labels)
    likely = 1 / (1 + np.exp(-outputs.astype(np.float64)))
    np.testing.assert_allclose(judged.errors, likely - labels, atol=4e-4)
    x = outputs.astype(np.float64)
    loss = (np.logaddexp(0, x) - x * labels).sum()
    assert abs(judged.loss - loss) < 1e-9 * (1 + loss)
    assert judged.hits == pytest.approx(((outputs >= 0) == labels).sum() / 5)
    grid = judged.errors * 2.0**15
    np.testing.assert_array_equal(grid, np.rint(grid))


def test_squared_errors_and_loss() -> None:
    rng = np.random.default_rng(0)
    outputs, wanted = rng.normal(0, 1, (2, 6, 9)).astype(np.float32)
    judged = MeanSquaredError(0.5, 3).judge(outputs, wanted)
    assert judged.loss == pytest.approx(float(((outputs - wanted) ** 2).mean(axis=1).sum()))
    np.testing.assert_allclose(judged.errors, 2 * (outputs - wanted) / 9, rtol=1e-6)
    assert judged.hits is None


def test_an_autoencoders_labels_are_its_inputs() -> None:
    """int8 labels are dequantised: shape, scale and zero point are the input's."""
    inputs = np.arange(-6, 6, dtype=np.int8).reshape(2, 3, 2)
    real = (inputs.reshape(2, 6) - np.float32(3)) * np.float32(0.5)
    judged = MeanSquaredError(0.5, 3).judge(real, inputs)
    assert judged.loss == 0
    assert not judged.errors.any()
    assert MeanSquaredError(0.5, 2).judge(real, inputs).loss > 0  # control


def test_weights_of_classes_are_factors() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(0, 2, (30, 3)).astype(np.float32), np.arange(30) % 3
    plain = [
        SoftmaxCrossEntropy().judge(logits[labels == c], labels[labels == c]) for c in range(3)
    ]
    weighted = SoftmaxCrossEntropy((1.0, 2.0, 0.5)).judge(logits, labels)
    expected = plain[0].loss + 2 * plain[1].loss + 0.5 * plain[2].loss
    assert weighted.loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(weighted.errors[labels == 1], 2 * plain[1].errors)
    present = np.eye(3, dtype=np.uint8)[labels]
    many, few = (SigmoidCrossEntropy(w).judge(logits, present) for w in ((), (1.0, 4.0, 1.0)))
    np.testing.assert_array_equal(few.errors[present == 0], many.errors[present == 0])
    np.testing.assert_array_equal(few.errors[labels == 1, 1], 4 * many.errors[labels == 1, 1])


@pytest.mark.parametrize("weights", [(0.0, 1.0), (-1.0,), (float("nan"),), (float("inf"),)])
def test_weights_that_are_none_are_refused(digits: Model, weights: tuple[float, ...]) -> None:
    with pytest.raises(TrainerError, match="above 0"):
        make_loss("softmax_cross_entropy", digits, weights)
    with pytest.raises(TrainerError, match="no classes"):
        make_loss("mean_squared_error", digits, (1.0,))


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_cross_entropy"])
@pytest.mark.parametrize("count", [1, 3, 9, 10, 11])
def test_there_is_a_weight_for_each_class(digits: Model, loss: str, count: int) -> None:
    if count == 10:
        make_loss(loss, digits, (1.0,) * count)
        return
    with pytest.raises(ConfigError, match=f"{count} class weights, the model has 10 classes"):
        make_loss(loss, digits, (1.0,) * count)
