# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.agent.policy import OwnLoad, Readings, Verdict, judge
from fedlearn.config import PolicyConfig

ALL = PolicyConfig(
    on_mains_only=True,
    min_battery_percent=30,
    max_temperature_c=70,
    max_load_per_core=0.5,
    max_memory_pressure_percent=10,
    min_available_memory_kib=50_000,
    window="22:00-06:00",
)
FINE = Readings(
    on_mains=True,
    battery_percent=80,
    temperature_c=50,
    load=0.2,
    memory_pressure_percent=0,
    available_memory_kib=100_000,
    minute=23 * 60,
    cores=2,
)


def with_(**changes: object) -> Readings:
    values = {name: getattr(FINE, name) for name in Readings.__slots__}
    return Readings(**{**values, **changes})  # type: ignore[arg-type]


def test_when_all_is_fine_it_allows() -> None:
    """The control of the next test."""
    verdict = judge(ALL, FINE)
    assert verdict.allows
    assert verdict.reason == ""
    assert len(verdict.checks) == 7


@pytest.mark.parametrize(
    ("reading", "value", "reason"),
    [
        ("on_mains", False, "on battery, mains required"),
        ("battery_percent", 29, "battery 29 %, limit 30 %"),
        ("temperature_c", 71.0, "71 C, limit 70 C"),
        ("temperature_c", 70.4, "70.4 C, limit 70 C"),
        ("load", 1.5, "load 0.75 per core, limit 0.5 per core"),
        ("memory_pressure_percent", 12.25, "memory pressure 12.2 %, limit 10 %"),
        ("available_memory_kib", 40_000, "available memory 40000 KiB, limit 50000 KiB"),
        ("minute", 14 * 60 + 3, "14:03, window 22:00-06:00"),
    ],
)
def test_each_limit_forbids_and_says_why(reading: str, value: object, reason: str) -> None:
    verdict = judge(ALL, with_(**{reading: value}))
    assert not verdict.allows
    assert verdict.reason == reason
    assert sum(not each.allows for each in verdict.checks) == 1
    assert judge(PolicyConfig(), with_(**{reading: value})).allows  # the control: no limits


def test_several_reasons_are_all_told() -> None:
    reason = judge(ALL, with_(on_mains=False, temperature_c=80)).reason
    assert reason == "on battery, mains required; 80 C, limit 70 C"


def test_without_limits_nothing_is_checked() -> None:
    assert judge(PolicyConfig(), FINE) == Verdict()


def test_what_no_sensor_tells_holds_nothing_back() -> None:
    verdict = judge(ALL, Readings())
    assert verdict.allows
    assert len(verdict.checks) == 7
    assert all("not known" in each.text and each.value is None for each in verdict.checks)


@pytest.mark.parametrize(
    ("reading", "passed", "still", "again"),
    [
        ("battery_percent", 29, 34, 35),
        ("temperature_c", 71, 66, 65),
        ("load", 1.1, 0.92, 0.9),
        ("memory_pressure_percent", 11, 9.5, 9),
        ("available_memory_kib", 49_000, 54_000, 55_000),
    ],
)
def test_a_reading_must_come_back_by_a_margin(
    reading: str, passed: float, still: float, again: float
) -> None:
    assert judge(ALL, with_(**{reading: still})).allows  # the control: it has not passed the limit
    before = judge(ALL, with_(**{reading: passed}))
    held = judge(ALL, with_(**{reading: still}), before)
    assert not held.allows
    assert "allowed again at" in held.reason
    assert not judge(ALL, with_(**{reading: still}), held).allows  # as long as it lasts
    assert judge(ALL, with_(**{reading: again}), held).allows


@pytest.mark.parametrize(("limit", "again"), [(30, 35), (96, 99), (100, 100)])
def test_every_battery_can_be_full_enough_again(limit: float, again: float) -> None:
    limits = PolicyConfig(min_battery_percent=limit)
    before = judge(limits, Readings(battery_percent=limit - 1))
    assert judge(limits, Readings(battery_percent=again), before).allows
    assert not judge(limits, Readings(battery_percent=again - 0.5), before).allows


@given(st.lists(st.floats(40, 100), min_size=2, max_size=50))
def test_it_never_flaps_within_the_margin(temperatures: list[float]) -> None:
    """Between two changes of its mind the temperature has moved by the margin at least."""
    limits, verdict = PolicyConfig(max_temperature_c=70), Verdict()
    turned = math.nan
    for celsius in temperatures:
        following = judge(limits, Readings(temperature_c=celsius), verdict)
        if following.allows != verdict.allows:
            assert math.isnan(turned) or abs(celsius - turned) >= 5
            turned = celsius
        verdict = following


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("22:00-06:00", ["22:00", "23:59", "00:00", "05:59"], ["06:00", "21:59", "12:00"]),
        ("09:30-17:00", ["09:30", "16:59"], ["09:29", "17:00", "00:00"]),
        ("22:00-00:00", ["22:00", "23:59"], ["00:00", "21:59"]),
        ("00:00-06:00", ["00:00", "05:59"], ["06:00", "23:59"]),
    ],
)
def test_windows(window: str, inside: list[str], outside: list[str]) -> None:
    limits = PolicyConfig(window=window)
    for clock in (*inside, *outside):
        minute = int(clock[:2]) * 60 + int(clock[3:])
        assert judge(limits, Readings(minute=minute)).allows == (clock in inside), clock


def test_free_memory_is_no_matter_of_a_training_that_runs() -> None:
    short = with_(available_memory_kib=1)
    assert judge(ALL, short, training=True).allows
    assert not judge(ALL, short).allows


def kernel_load(seconds: int, running: int, load: float) -> float:
    """As kernel/sched/loadavg.c does it, in its fixed point: each 5 s, EXP_1 of 2048."""
    fixed = round(load * 2048)
    for _ in range(0, seconds, 5):
        target = running * 2048
        fixed = (fixed * 1884 + target * (2048 - 1884) + (2047 if target >= fixed else 0)) // 2048
    return fixed / 2048


def test_a_trainings_own_load_is_not_held_against_it() -> None:
    own, load = OwnLoad(threads=2, now=0.0), 0.0
    limits, now, verdict = PolicyConfig(max_load_per_core=0.5), 0.0, Verdict()
    for training, seconds in ((True, 300), (False, 30), (True, 60), (False, 300)):
        for _ in range(0, seconds, 5):
            now += 5
            load = kernel_load(5, 2 * training, load)
            mine = own.lasted(now, training=training)
            assert mine == pytest.approx(load, abs=0.05)
            verdict = judge(limits, Readings(load=load, cores=2), verdict, own_load=mine)
            assert verdict.allows
    others = kernel_load(300, 2, 0.0)
    assert not judge(limits, Readings(load=others, cores=2), own_load=mine).allows  # the control
