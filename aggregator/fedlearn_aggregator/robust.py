# SPDX-License-Identifier: Apache-2.0
"""Aggregation that a minority of hostile updates cannot steer.

Each update counts the same: a device's claim of its samples is not believed here. `f` is the number
of updates that may be hostile, a share of those that a round has.

    trimmed-mean   by coordinate, without the f least and the f greatest values
    median         by coordinate (Yin et al. 2018, "Byzantine-Robust Distributed Learning", both)
    krum           the update that lies closest to its n - f - 2 nearest (Blanchard et al. 2017,
                   "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent")
    multi-krum     the mean of the n - f that lie closest to theirs (the same)
    mean           of what is left after clipping (Sun et al. 2019, "Can You Really Backdoor
                   Federated Learning?"); the bound follows the round's median norm

**Mixing.** Devices with unlike data send unlike updates; honest values lie far apart, and a
minority shifts a median by much of that distance. So, if asked to, each update is first replaced by
the mean of the n - f that are nearest to it, itself included (Allouah et al. 2023, "Fixing by
Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity").

**Ties.** A delta counts whole steps of int8, and four in five are zero: the plain median of each
coordinate would be zero, and nothing would be learnt. But a value d stands for all real ones that
round to it, so t equal values are spread evenly over [d - 1/2, d + 1/2], as for the median of
grouped data. The mean of all spread values is the mean of the deltas.

**The same bits** in every order of arrival and after a restart: updates are taken by the names of
their devices, and summed in that order, or that of their values, by elementwise IEEE 754
operations. Norms and distances alone are summed in NumPy's own order, by which two builds of it may
differ by a bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from fedlearn.errors import ConfigError
from fedlearn.wire.messages import TrainableTensor
from fedlearn_aggregator.aggregation import Arrays, Deltas

Scales = Mapping[int, npt.NDArray[np.float64]]
# Unpacks the delta of a tensor, int32 in the tensor's shape; None when it was not trained. Packed,
# an update is a twentieth of its size: a large cohort's are all in memory in this form alone.
Opener = Callable[[int], npt.NDArray[np.int32] | None]
# Of one tensor the deltas of all devices are in memory at a time; wider ones go in pieces.
PIECE_BYTES = 64 * 1024 * 1024


class Rule(StrEnum):
    """The aggregation rules by name."""

    MEAN = "mean"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed-mean"
    KRUM = "krum"
    MULTI_KRUM = "multi-krum"


@dataclass(frozen=True, slots=True)
class AggregationSettings:
    """The rule and its parameters; with the defaults it is the mean weighted by samples.

    `hostile` is the share of a round's updates that may be hostile. An update whose l2 norm in real
    units is above `clip` times the round's median norm is scaled down to that, and one above `drop`
    times it is left out; 0: none is. One above `max_norm`, in real units, is refused at once; 0:
    none is. With `mix` each update is averaged with its nearest before a median or trimmed mean.
    """

    rule: Rule = Rule.MEAN
    hostile: float = 0.2
    clip: float = 0.0
    drop: float = 0.0
    max_norm: float = 0.0
    mix: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.hostile < 0.5:
            raise ConfigError("the share of hostile updates must be from 0 to below 0.5")
        if self.mix and self.rule not in (Rule.MEDIAN, Rule.TRIMMED_MEAN):
            raise ConfigError(
                f"{self.rule} does not mix",
                hint="--mix-nearest is for --aggregation median and trimmed-mean",
            )
        if 0 < self.drop < 1:
            raise ConfigError(
                "half of all updates are above the median norm, and would be left out",
                hint="3 is a good --drop-update-norm",
            )
        if not all(0 <= each < math.inf for each in (self.clip, self.drop, self.max_norm)):
            raise ConfigError("bounds of norms must be 0 or more")

    @property
    def is_plain(self) -> bool:
        """Whether a running sum is all that it takes."""
        return self.rule is Rule.MEAN and not self.clip and not self.drop

    @property
    def in_real_units(self) -> bool:
        """Whether it needs the scales of the grid."""
        by_norm = bool(self.clip or self.drop or self.max_norm)
        return by_norm or self.mix or self.rule in (Rule.KRUM, Rule.MULTI_KRUM)

    @property
    def words(self) -> str:
        """All of it, for a person."""
        parts = [str(self.rule)]
        if self.mix:
            parts.append("of updates mixed with their nearest")
        if self.rule not in (Rule.MEAN, Rule.MEDIAN) or self.mix:
            parts.append(f"with {self.hostile:.0%} hostile")
        if self.drop:
            parts.append(f"without those above {self.drop:g} times the median norm")
        if self.clip:
            parts.append(f"scaled down to {self.clip:g} times the median norm")
        if self.max_norm:
            parts.append(f"norms above {self.max_norm:g} refused")
        return ", ".join(parts)

    def tolerated(self, updates: int) -> int:
        """f: how many of so many updates may be hostile."""
        return math.floor(self.hostile * updates)

    def check_policy(self, least: int, most: int) -> None:
        """Raise ConfigError unless the rule works for every number of updates of a round."""
        for updates in range(least, most + 1):
            f = self.tolerated(updates)
            if self.rule in (Rule.KRUM, Rule.MULTI_KRUM) and updates < 2 * f + 3:
                raise ConfigError(
                    f"{self.rule} needs 2f + 3 updates, {2 * f + 3} with {f} hostile ones of "
                    f"{updates}",
                    hint="raise --minimum, or lower --hostile",
                )


def norm(deltas: Deltas, scales: Scales) -> float:
    """The l2 norm of an update in real units."""
    squares = (np.square(delta * scales[index]).sum() for index, delta in sorted(deltas.items()))
    return math.sqrt(math.fsum(squares))


def aggregate(
    settings: AggregationSettings,
    tensors: Sequence[TrainableTensor],
    updates: Sequence[Opener],
    norms: Sequence[float],
    scales: Scales,
) -> Arrays:
    """One delta by tensor, float64, in steps of the tensor's grid.

    `updates` and their `norms` come in the order of their devices' names; `scales` are real values
    of one step, in the tensors' shapes. A tensor that fewer than 2 f + 1 of them trained stays as
    it is: its values could all be hostile.
    """
    f = settings.tolerated(len(updates))
    if settings.drop and len(updates):
        kept = np.flatnonzero(np.array(norms) <= settings.drop * float(np.median(norms)))
        # Who is left out has used up his part of what is tolerated.
        f = max(0, f - (len(updates) - kept.size))
        updates, norms = [updates[at] for at in kept], [norms[at] for at in kept]
    factors = _factors(settings, norms)
    if settings.rule in (Rule.KRUM, Rule.MULTI_KRUM):
        apart = _distances(tensors, updates, scales, factors)
        chosen = _closest(settings.rule, apart, f)
        updates, factors = [updates[at] for at in chosen], factors[chosen]
        f = 0
    nearest = None
    if settings.mix:
        nearest = _nearest(_distances(tensors, updates, scales, factors), len(updates) - f)
    result: Arrays = {}
    for tensor in tensors:
        moved = np.zeros(math.prod(tensor.shape))
        for cut in _pieces(moved.size, len(updates)):
            rows = [
                delta.ravel()[cut] * factor
                for each, factor in zip(updates, factors, strict=True)
                if (delta := each(tensor.index)) is not None
            ]
            if len(rows) <= 2 * f:
                continue
            stacked = np.stack(rows)
            if nearest is None or len(rows) < len(updates):
                moved[cut] = _combine(settings.rule, stacked, f)
            else:  # as sums, which are whole numbers as deltas are
                moved[cut] = _combine(settings.rule, nearest @ stacked, f) / (len(updates) - f)
        result[tensor.index] = moved.reshape(tensor.shape)
    return result


def _factors(settings: AggregationSettings, norms: Sequence[float]) -> npt.NDArray[np.float64]:
    """By which each update is scaled down: float64, 1 for those within the bound."""
    if not settings.clip or not norms:
        return np.ones(len(norms))
    sizes = np.array(norms)
    bound = settings.clip * float(np.median(sizes))
    return np.divide(bound, sizes, out=np.ones(sizes.size), where=sizes > bound)


def _pieces(size: int, updates: int) -> Iterator[slice]:
    """A flattened tensor in pieces of which one of each update fits `PIECE_BYTES`."""
    width = max(1, PIECE_BYTES // (8 * max(updates, 1)))
    for start in range(0, size, width):
        yield slice(start, start + width)


def _combine(rule: Rule, rows: npt.NDArray[np.float64], f: int) -> npt.NDArray[np.float64]:
    match rule:
        case Rule.MEDIAN:
            return trimmed_mean(rows, (len(rows) - 1) // 2)
        case Rule.TRIMMED_MEAN:
            return trimmed_mean(rows, f)
    return _mean(rows)


def trimmed_mean(rows: npt.NDArray[np.float64], trim: int) -> npt.NDArray[np.float64]:
    """The mean by column without its `trim` least and greatest values, ties spread as said above.

    `rows` is [n, columns], n > 2 trim.
    """
    count = len(rows)
    ordered = np.sort(rows, axis=0)
    # For each value: the first and the last place of those that equal it.
    first = np.zeros(rows.shape, np.int32)
    last = np.full(rows.shape, count - 1, np.int32)
    for at in range(1, count):
        same = ordered[at] == ordered[at - 1]
        first[at] = np.where(same, first[at - 1], at)
        last[-1 - at] = np.where(ordered[-1 - at] == ordered[-at], last[-at], count - 1 - at)
    place = np.arange(count, dtype=np.float64)[:, None]
    ties = last - first + 1
    spread = (2 * (place - first) + 1 - ties) / (2 * ties)
    return _mean((ordered + spread)[trim : count - trim])


def _mean(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """By column. Added from both ends, so that what lies evenly around 0 gives exactly 0."""
    half, odd = divmod(len(rows), 2)
    total = rows[half].copy() if odd else np.zeros(rows.shape[1])
    for at in range(half):
        total += rows[at] + rows[-1 - at]
    return total / np.float64(max(len(rows), 1))


def _distances(
    tensors: Sequence[TrainableTensor],
    updates: Sequence[Opener],
    scales: Scales,
    factors: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Squared l2 distances in real units: [n, n]. Tensors that were left out count as 0."""
    count = len(updates)
    squared = np.zeros((count, count))
    for tensor in tensors:
        steps = scales[tensor.index].ravel()
        for cut in _pieces(steps.size, count):
            rows = np.zeros((count, steps[cut].size))
            for at, each in enumerate(updates):
                delta = each(tensor.index)
                if delta is not None:
                    rows[at] = delta.ravel()[cut] * steps[cut] * factors[at]
            for at in range(count):
                squared[at] += np.square(rows - rows[at]).sum(axis=1)
    return squared


def _closest(rule: Rule, squared: npt.NDArray[np.float64], f: int) -> npt.NDArray[np.intp]:
    """Places of the updates that Krum chooses, ascending."""
    count = len(squared)
    others = squared.copy()
    np.fill_diagonal(others, np.inf)
    nearest = np.sort(others, axis=1)[:, : max(count - f - 2, 1)]
    wanted = 1 if rule is Rule.KRUM else count - f
    best = np.argsort(nearest.sum(axis=1), kind="stable")[:wanted]
    return np.sort(best)


def _nearest(squared: npt.NDArray[np.float64], wanted: int) -> npt.NDArray[np.float64]:
    """1 for each row's nearest, itself included, 0 for the others: [n, n]."""
    own_first = squared.copy()
    np.fill_diagonal(own_first, -1.0)
    places = np.argsort(own_first, axis=1, kind="stable")[:, :wanted]
    chosen = np.zeros_like(squared)
    np.put_along_axis(chosen, places, 1.0, axis=1)
    return chosen
