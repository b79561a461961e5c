# SPDX-License-Identifier: Apache-2.0
"""The fixed-point softmax against the textbook's, in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fedlearn.trainer.loss import _POWERS, softmax_cross_entropy


def test_the_table_is_correctly_rounded() -> None:
    exact = 2.0 ** (30 - np.arange(1024, dtype=np.longdouble) / 1024)
    assert _POWERS.tolist() == np.rint(exact).astype(np.int64).tolist()


@given(
    arrays(np.float32, (4, 10), elements=st.floats(-60, 60, width=32)),
    arrays(np.int64, 4, elements=st.integers(0, 9)),
)
def test_errors_and_loss(logits: NDArray[Any], labels: NDArray[Any]) -> None:
    judged = softmax_cross_entropy(logits, labels)
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
    errors = softmax_cross_entropy(logits, np.zeros(50, np.int64)).errors * 2.0**15
    np.testing.assert_array_equal(errors, np.rint(errors))
    # Rounded shares need not sum to one, but nearly.
    assert np.abs(errors.sum(axis=1)).max() <= 5
