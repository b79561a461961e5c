# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.collect.rules import parse_rules
from fedlearn.collect.sample import Counts, Item, Sample
from fedlearn.collect.windows import Window, Windower
from fedlearn.errors import ConfigError
from tests.client.collect.harness import GRID

PERIOD_MS = 10


def windows(
    items: list[Item], stride: int = 0, *, rules: tuple[str, ...] = (), pause_at: int = -1
) -> tuple[list[Window], Counts]:
    counts = Counts()
    parsed = parse_rules(rules, GRID.channels, ("rest", "walk"))
    windower = Windower(GRID, stride, counts, rules=parsed)
    now, made = 0, []
    for number, item in enumerate(items):
        now += 5000 if number == pause_at else PERIOD_MS
        made += list(windower.push(item, now))
    return made, counts


def sample(number: float, label: int | None = None) -> Sample:
    return Sample((number, -number), label)


def first_values(made: list[Window]) -> list[float]:
    return [GRID.real(each.data[0], 0) for each in made]


@pytest.mark.parametrize(
    ("stride", "starts"),
    [(0, [0, 4, 8]), (4, [0, 4, 8]), (2, [0, 2, 4, 6, 8]), (1, list(range(9))), (6, [0, 6])],
)
def test_strides(stride: int, starts: list[float]) -> None:
    made, counts = windows([sample(n) for n in range(12)], stride)
    assert first_values(made) == starts
    assert counts.windows == len(starts)
    assert (made[0].start_ms, made[0].end_ms) == (PERIOD_MS, 4 * PERIOD_MS)


@given(st.lists(st.one_of(st.none(), st.integers(0, 60)), max_size=40), st.integers(0, 6))
def test_no_window_reaches_across_a_gap(numbers: list[int | None], stride: int) -> None:
    """Invariant: the samples of each window are those of four items in a row."""
    items = [None if number is None else sample(number) for number in numbers]
    made, _ = windows(items, stride)
    rows = {
        tuple(numbers[at : at + 4])
        for at in range(len(numbers) - 3)
        if None not in numbers[at : at + 4]
    }
    for each in made:
        assert tuple(GRID.real(byte, 0) for byte in each.data[::2]) in rows


def test_a_pause_is_a_gap() -> None:
    made, counts = windows([sample(n) for n in range(8)], pause_at=2)
    assert first_values(made) == [2]
    assert counts.breaks == 1
    assert len(windows([sample(n) for n in range(8)])[0]) == 2  # control


def test_a_window_of_two_labels_is_dropped() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, None, 1]
    made, counts = windows([sample(n, label) for n, label in enumerate(labels)], 2)
    assert [each.label for each in made] == [0, 1, 1]
    assert (counts.mixed, counts.labelled) == (2, 3)


def test_rules_in_their_order() -> None:
    rules = ("walk if peak(a) > 5", "0 if mean(b) < -2.5")
    made, _ = windows([sample(n) for n in range(12)], rules=rules)
    assert [each.label for each in made] == [None, 1, 1]
    made, _ = windows([sample(3)] * 4, rules=(*rules, "1 if always"))
    assert [each.label for each in made] == [0]


@pytest.mark.parametrize(
    ("statistic", "value"),
    [("mean", 1.5), ("min", 0), ("max", 3), ("range", 3), ("rms", 1.8708), ("std", 1.1180)],
)
def test_statistics(statistic: str, value: float) -> None:
    items: list[Item] = [sample(n) for n in range(4)]
    for limit, label in ((value - 0.01, 1), (value + 0.01, None)):
        made, _ = windows(items, rules=(f"walk if {statistic}(a) > {limit}",))
        assert made[0].label == label


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "1",
        "1 if rms(c) > 1",
        "1 if rsm(a) > 1",
        "run if rms(a) > 1",
        "1 if rms(a) > x",
        "9 if always",
    ],
)
def test_wrong_rules_are_named(rule: str) -> None:
    with pytest.raises(ConfigError):
        parse_rules((rule,), GRID.channels, ("rest", "walk"))
