# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules."""

from __future__ import annotations

import math

import pytest

from fedlearn.trainer.schedule import SCHEDULES, factor


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_begins_with_the_whole_rate_and_never_rises(schedule: str) -> None:
    factors = [factor(schedule, step, 40) for step in range(40)]
    assert factors[0] == 1.0
    assert factors == sorted(factors, reverse=True)
    assert all(0 < each <= 1 for each in factors)
    assert (factors[-1] < 0.03) == (schedule != "constant")


def test_the_cosine_is_one() -> None:
    for step in range(1000):
        exact = (1 + math.cos(math.pi * step / 1000)) / 2
        assert factor("cosine", step, 1000) == pytest.approx(exact, abs=1e-12)


def test_linear_is_linear() -> None:
    assert [factor("linear", step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
