# SPDX-License-Identifier: Apache-2.0
"""Sums are exact: the order of arrival and the size of the numbers do not matter."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.wire.messages import TrainableTensor
from fedlearn_aggregator.aggregation import MAX_SAMPLES, DeltaSum
from fedlearn_aggregator.rounds import MAX_COHORT

TENSORS = (TrainableTensor(3, "w", (2, 3), "int8"), TrainableTensor(5, "b", (2,), "int32"))
INT32 = st.integers(-(2**31), 2**31 - 1)
UPDATE = st.tuples(
    st.integers(1, MAX_SAMPLES),
    st.lists(st.integers(-255, 255), min_size=6, max_size=6),
    st.lists(INT32, min_size=2, max_size=2),
)


def total(updates: list[tuple[int, list[int], list[int]]]) -> DeltaSum:
    result = DeltaSum(TENSORS)
    for samples, weights, biases in updates:
        result.add(
            samples,
            {3: np.array(weights, np.int32).reshape(2, 3), 5: np.array(biases, np.int32)},
        )
    return result


@given(
    st.lists(UPDATE, min_size=1, max_size=8).flatmap(
        lambda updates: st.tuples(st.just(updates), st.permutations(updates))
    )
)
def test_any_order_gives_the_same_bits(orders: tuple[list, list]) -> None:  # type: ignore[type-arg]
    first, second = total(orders[0]).mean(), total(orders[1]).mean()
    assert {i: a.tobytes() for i, a in first.items()} == {i: a.tobytes() for i, a in second.items()}


def test_the_control_float_sums_do_depend_on_the_order() -> None:
    values = [np.float32(each) for each in (1e8, 1.0, -1e8)]
    assert len({float(a + b + c) for a, b, c in permutations(values)}) > 1


@given(st.lists(UPDATE, min_size=1, max_size=5))
def test_the_mean_is_the_exact_one_rounded(updates: list) -> None:  # type: ignore[type-arg]
    mean = total(updates).mean()
    samples = sum(update[0] for update in updates)
    for i in range(6):
        exact = sum(Fraction(n) * w[i] for n, w, _ in updates) / samples
        assert mean[3].flat[i] == float(exact)
    for i in range(2):
        exact = sum(Fraction(n) * b[i] for n, _, b in updates) / samples
        # Two roundings, int64 to float64 and the quotient.
        assert mean[5][i] == pytest.approx(float(exact), rel=2**-51, abs=0)


def test_the_largest_round_there_can_be_does_not_overflow() -> None:
    result = DeltaSum((TrainableTensor(0, "b", (1,), "int32"),))
    worst = np.array([-(2**31)], np.int32)
    for _ in range(MAX_COHORT):
        result.add(MAX_SAMPLES, {0: worst})
    assert result.mean()[0][0] == float(worst[0])
    with pytest.raises(ValueError, match="limits"):
        result.add(1, {0: worst})


@pytest.mark.parametrize("samples", [0, -1, MAX_SAMPLES + 1])
def test_samples_out_of_range_are_refused(samples: int) -> None:
    with pytest.raises(ValueError, match="limits"):
        total([(samples, [0] * 6, [0, 0])])


@pytest.mark.parametrize(
    "deltas",
    [
        {4: np.zeros((2, 3), np.int32)},
        {3: np.zeros((3, 2), np.int32), 5: np.zeros(2, np.int32)},
    ],
)
def test_other_tensors_are_refused(deltas: dict[int, np.ndarray]) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match="fit"):
        DeltaSum(TENSORS).add(1, deltas)


def test_a_tensor_that_was_not_trained_is_not_averaged() -> None:
    """Device 1 trained both tensors on 10 samples, device 2 the bias alone on 30."""
    whole = DeltaSum(TENSORS)
    whole.add(10, {3: np.full((2, 3), 4, np.int32), 5: np.array([2, 2], np.int32)})
    whole.add(30, {5: np.array([-2, 6], np.int32)})
    mean = whole.mean()
    assert mean[3].tolist() == [[4.0] * 3] * 2
    assert mean[5].tolist() == [-1.0, 5.0]
    alone = DeltaSum(TENSORS)
    alone.add(30, {5: np.array([-2, 6], np.int32)})
    assert alone.mean()[3].tolist() == [[0.0] * 3] * 2
