# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fedlearn.agent.allowance import LEAST_KIB, Allowance, after_death, kind_of
from fedlearn.config import TrainingConfig

from .harness import order

CONFIG = TrainingConfig()


def test_the_first_is_half_of_what_was_taken_then_half_of_the_last() -> None:
    assert after_death("kind", 0, 40_000) == Allowance(20_000, "kind")
    assert after_death("kind", 20_000, 41_000) == Allowance(10_000, "kind")
    assert after_death("kind", 20_000, 0) == Allowance(10_000, "kind")
    assert after_death("kind", 0, 0) is None  # the program itself did not fit


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_it_falls_to_a_floor_and_stays_there(allowed: int, need: int) -> None:
    for _ in range(40):
        allowance = after_death("kind", allowed, need)
        if allowance is None:
            assert allowed == need == 0
            return
        assert allowance.kib >= LEAST_KIB
        assert allowance.kib <= max(LEAST_KIB, (allowed or need) // 2)
        allowed = allowance.kib
    assert allowed == LEAST_KIB


def test_it_holds_for_the_same_network_and_configuration_only() -> None:
    first = order(3)
    kind = kind_of("digits", first, CONFIG)
    allowance = Allowance(100, kind)
    next_round = replace(first, round=4, model=bytes(32), seed=8, deadline_s=9.0)
    assert allowance.of(kind_of("digits", next_round, CONFIG)) == 100
    for task, changed, config in (
        ("other", first, CONFIG),
        ("digits", replace(first, model_bytes=5), CONFIG),
        ("digits", replace(first, tensors=(1,)), CONFIG),
        ("digits", replace(first, plan=replace(first.plan, batch_size=1)), CONFIG),
        ("digits", first, TrainingConfig(memory_kib=500)),
    ):
        assert allowance.of(kind_of(task, changed, config)) == 0
