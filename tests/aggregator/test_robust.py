# SPDX-License-Identifier: Apache-2.0
"""Robust aggregation against oracles that share no code with it; what hostile updates can do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import median_grouped

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedlearn.errors import ConfigError
from fedlearn.wire.messages import TrainableTensor
from fedlearn_aggregator import robust
from fedlearn_aggregator.aggregation import Arrays, DeltaSum
from fedlearn_aggregator.robust import AggregationSettings, Rule, aggregate, norm, trimmed_mean

TENSORS = (TrainableTensor(3, "w", (2, 3), "int8"), TrainableTensor(5, "b", (2,), "int32"))
SCALES = {3: np.full((2, 3), 0.5), 5: np.array([0.25, 2.0])}
Deltas = dict[int, NDArray[np.int32]]
COLUMN = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


def update(*values: int) -> Deltas:
    """Six weights and two biases."""
    return {
        3: np.array(values[:6], np.int32).reshape(2, 3),
        5: np.array(values[6:], np.int32),
    }


def combined(settings: AggregationSettings, updates: Sequence[Deltas]) -> Arrays:
    openers = [each.get for each in updates]
    norms = [norm(each, SCALES) for each in updates]
    return aggregate(settings, TENSORS, openers, norms, SCALES)


def flat(arrays: Arrays) -> list[float]:
    return [*arrays[3].ravel().tolist(), *arrays[5].tolist()]


def spread_mean(values: list[int], trim: int) -> Fraction:
    """The oracle, in exact fractions: equal values stand evenly around their own."""
    ordered: list[Fraction] = []
    for value, group in itertools.groupby(sorted(values)):
        count = len(list(group))
        ordered += [value + Fraction(2 * at + 1 - count, 2 * count) for at in range(count)]
    kept = ordered[trim : len(ordered) - trim]
    return sum(kept, Fraction(0)) / len(kept)


@given(COLUMN, st.data())
def test_a_trimmed_mean_is_the_exact_one(values: list[int], data: st.DataObject) -> None:
    trim = data.draw(st.integers(0, (len(values) - 1) // 2))
    found = trimmed_mean(np.array(values, np.float64)[:, None], trim)[0]
    assert found == pytest.approx(float(spread_mean(values, trim)), abs=1e-12)


@given(COLUMN)
def test_without_trimming_it_is_the_mean(values: list[int]) -> None:
    found = trimmed_mean(np.array(values, np.float64)[:, None], 0)[0]
    assert found == pytest.approx(float(Fraction(sum(values), len(values))), abs=1e-12)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=11).filter(lambda v: len(v) % 2))
def test_the_median_is_that_of_grouped_data(values: list[int]) -> None:
    """Python's own. With one value in the middle, that value's place is the median's."""
    rows = [update(*[value] * 8) for value in values]
    found = flat(combined(AggregationSettings(Rule.MEDIAN), rows))
    assert found == pytest.approx([median_grouped(values)] * 8, abs=1e-12)


def test_the_control_a_plain_median_learns_nothing_from_sparse_deltas() -> None:
    """Two of ten moved by a step, as one in five values of a delta does."""
    values = [0] * 8 + [1] * 2
    assert float(np.median(values)) == 0.0
    rows = [update(*[value] * 8) for value in values]
    assert flat(combined(AggregationSettings(Rule.MEDIAN), rows)) == pytest.approx([0.125] * 8)
    assert flat(combined(AggregationSettings(Rule.TRIMMED_MEAN), rows)) == pytest.approx(
        [0.125] * 8
    )


UPDATE = st.lists(st.integers(-127, 127), min_size=8, max_size=8).map(lambda v: update(*v))


@pytest.mark.parametrize("rule", Rule)
@given(st.lists(UPDATE, min_size=5, max_size=9))
def test_a_minority_moves_nothing_beyond_what_honest_ones_sent(
    rule: Rule, updates: list[Deltas]
) -> None:
    """One of five to nine is hostile, and sends what it likes."""
    honest: list[NDArray[np.float64]] = [np.array(flat(each)) for each in updates]  # type: ignore[arg-type]
    hostile = update(*[10**6] * 8)
    settings = AggregationSettings(rule, hostile=0.2, clip=1.0 if rule is Rule.MEAN else 0.0)
    found = np.array(flat(combined(settings, [*updates, hostile])))
    # Half a step around what honest ones sent, by the spreading; a clipped mean is within norms.
    if rule is not Rule.MEAN:
        assert (found >= np.min(honest, axis=0) - 0.5).all()
        assert (found <= np.maximum(np.max(honest, axis=0), 0) + 0.5).all()
    scales = np.array(flat(SCALES))
    largest = max(np.linalg.norm(each * scales) for each in honest)
    if rule is Rule.MEAN:
        assert np.linalg.norm(found * scales) <= largest * (1 + 1e-12)


def test_the_control_the_plain_mean_is_moved_by_one() -> None:
    rows = [update(*[1] * 8)] * 8 + [update(*[10**6] * 8)]
    assert min(flat(combined(AggregationSettings(), rows))) > 100_000


@given(st.lists(UPDATE, min_size=7, max_size=9))
def test_krum_is_the_brute_force_one(updates: list[Deltas]) -> None:
    count, f = len(updates), 1
    real = [np.array(flat(each)) * np.array(flat(SCALES)) for each in updates]  # type: ignore[arg-type]
    scores = []
    for at in range(count):
        others = sorted(math.dist(real[at], real[o]) ** 2 for o in range(count) if o != at)
        scores.append(sum(others[: count - f - 2]))
    settings = AggregationSettings(Rule.KRUM, hostile=f / count + 1e-9)
    chosen = flat(combined(settings, updates))
    best = min(scores)
    near = [at for at in range(count) if scores[at] <= best * (1 + 1e-9) + 1e-9]
    assert any(chosen == flat(updates[at]) for at in near)  # type: ignore[arg-type]
    multi = AggregationSettings(Rule.MULTI_KRUM, hostile=f / count + 1e-9)
    kept = np.argsort(scores, kind="stable")[: count - f]
    if np.unique(np.round(scores, 6)).size == count:  # without ties there is one answer
        mean = np.mean([flat(updates[at]) for at in sorted(kept)], axis=0)  # type: ignore[arg-type]
        assert flat(combined(multi, updates)) == pytest.approx(mean)


def test_krum_leaves_out_who_is_far_away() -> None:
    near = [update(*[at % 3] * 8) for at in range(8)]
    far = [update(*[90] * 8), update(*[-90] * 8)]
    found = flat(combined(AggregationSettings(Rule.MULTI_KRUM), [far[0], *near, far[1]]))
    assert found == pytest.approx([7 / 8] * 8)


def test_a_clipped_update_has_the_median_norm() -> None:
    rows = [update(*[1] * 8), update(*[2] * 8), update(*[300] * 8)]
    scaled = norm(rows[1], SCALES) / norm(rows[2], SCALES)
    found = flat(combined(AggregationSettings(clip=1.0), rows))
    assert found == pytest.approx([(1 + 2 + 300 * scaled) / 3] * 8)
    # With three times the median norm the largest one may weigh three times as much.
    wide = flat(combined(AggregationSettings(clip=3.0), rows))
    assert wide == pytest.approx([(1 + 2 + 900 * scaled) / 3] * 8)


@pytest.mark.parametrize("rule", [Rule.MEDIAN, Rule.TRIMMED_MEAN])
def test_mixing_replaces_each_by_the_mean_of_its_nearest(rule: Rule) -> None:
    """Two groups of honest ones with unlike data, and a hostile one."""
    values = [0, 0, 1, 8, 9, 9, -60, 0, 1, 9]
    rows = [update(*[value] * 8) for value in values]
    settings = AggregationSettings(rule, hostile=0.1, mix=True)
    mixed = []
    for value in values:
        near = sorted(range(10), key=lambda at: (abs(values[at] - value), at))[:9]
        mixed.append(sum(values[at] for at in near))
    expected = float(spread_mean(mixed, 4 if rule is Rule.MEDIAN else 1)) / 9
    assert flat(combined(settings, rows)) == pytest.approx([expected] * 8)
    # The control: the same without.
    plain = AggregationSettings(rule, hostile=0.1)
    assert flat(combined(plain, rows)) != pytest.approx([expected] * 8, abs=0.1)
    with pytest.raises(ConfigError, match="does not mix"):
        AggregationSettings(Rule.KRUM, mix=True)


def test_an_update_that_is_left_out() -> None:
    rows = [update(*[1] * 8), update(*[2] * 8), update(*[2] * 8), update(*[-900] * 8)]
    found = flat(combined(AggregationSettings(drop=3.0), rows))
    assert found == pytest.approx([5 / 3] * 8)
    assert flat(combined(AggregationSettings(drop=1000.0), rows)) == pytest.approx([-895 / 4] * 8)
    with pytest.raises(ConfigError, match="half of all"):
        AggregationSettings(drop=0.5)


def test_claims_of_samples_count_for_nothing() -> None:
    rows = [update(*[1] * 8), update(*[4] * 8)]
    plain = DeltaSum(TENSORS)
    for samples, row in zip((1, 1000), rows, strict=True):
        plain.add(samples, row)
    assert flat(plain.mean()) == pytest.approx([4001 / 1001] * 8)  # the control
    assert flat(combined(AggregationSettings(clip=9.0), rows)) == [2.5] * 8


def test_a_tensor_that_few_trained_stays() -> None:
    """Of ten two may be hostile; a tensor of four could be half theirs, one of five cannot."""
    rows: list[Deltas] = [update(*[1] * 8) for _ in range(10)]
    for row in rows[4:]:
        del row[5]
    for rule in (Rule.MEDIAN, Rule.TRIMMED_MEAN):
        found = combined(AggregationSettings(rule), rows)
        assert found[3].tolist() == [[1.0] * 3] * 2
        assert found[5].tolist() == [0.0, 0.0]
    rows[4][5] = np.array([1, 1], np.int32)
    found = combined(AggregationSettings(Rule.MEDIAN), rows)
    assert found[5].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rule", Rule)
def test_pieces_change_nothing(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    rows = [update(*random.integers(-5, 6, 8)) for _ in range(9)]
    settings = AggregationSettings(rule, clip=1.0)
    whole = flat(combined(settings, rows))
    monkeypatch.setattr(robust, "PIECE_BYTES", 8 * 9 * 2)
    assert flat(combined(settings, rows)) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("rule", [each for each in Rule if each is not Rule.MEAN])
def test_no_update_is_no_move(rule: Rule) -> None:
    zero = update(*[0] * 8)
    assert flat(combined(AggregationSettings(rule), [zero] * 5)) == [0.0] * 8


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [
        (AggregationSettings(Rule.KRUM, hostile=0.4), 5, 5),
        (AggregationSettings(Rule.MULTI_KRUM, hostile=0.4), 9, 10),
        (AggregationSettings(Rule.KRUM, hostile=0.0), 2, 9),
    ],
)
def test_krum_needs_enough_updates(settings: AggregationSettings, least: int, most: int) -> None:
    with pytest.raises(ConfigError, match="2f \\+ 3"):
        settings.check_policy(least, most)
    AggregationSettings(Rule.KRUM).check_policy(3, 100)  # the control


def test_it_is_told_in_words() -> None:
    assert AggregationSettings().words == "mean"
    assert AggregationSettings(Rule.MEDIAN, mix=True, drop=3.0).words == (
        "median, of updates mixed with their nearest, with 20% hostile, "
        "without those above 3 times the median norm"
    )


@pytest.mark.parametrize(
    "values", [{"hostile": 0.5}, {"hostile": -0.1}, {"clip": -1.0}, {"max_norm": math.inf}]
)
def test_settings_that_make_no_sense(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        AggregationSettings(**values)  # type: ignore[arg-type]
