# SPDX-License-Identifier: Apache-2.0
"""May the device train now? Readings and limits make a verdict, with its reasons.

A limit whose sensor is not there holds nothing back. Once a reading has passed its limit, it has to
come back by a margin before it allows training again, so that the device does not flap around the
limit: 5 C, 5 points of battery (to 99 % at most), a tenth of any other limit. What a training of
our own changes is not held against it: its share of the load is subtracted, and the free memory
is looked at before a training only.

No I/O and no clock: `sensors` reads, `permission` remembers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedlearn.config import PolicyConfig

TEMPERATURE_MARGIN_C = 5.0
BATTERY_MARGIN_PERCENT = 5.0
# Many a battery never says more when it is full.
FULL_PERCENT = 99.0
MARGIN_SHARE = 0.1
# Of the kernel's first load average, kernel/sched/loadavg.c
LOAD_TIME_S = 60.0


@dataclass(frozen=True, slots=True)
class Readings:
    """What the sensors say; None: nothing."""

    on_mains: bool | None = None
    battery_percent: float | None = None
    temperature_c: float | None = None
    load: float | None = None  # of all cores together
    memory_pressure_percent: float | None = None
    available_memory_kib: float | None = None
    minute: int | None = None  # of the local day
    cores: int = 1


@dataclass(frozen=True, slots=True)
class Check:
    """One limit, and what it says now. `value` None: the sensor is not there."""

    name: str
    text: str
    allows: bool
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """All limits together."""

    checks: tuple[Check, ...] = field(default=())

    @property
    def allows(self) -> bool:
        """Whether training may begin, or go on."""
        return all(each.allows for each in self.checks)

    @property
    def reason(self) -> str:
        """What forbids it; empty when nothing does."""
        return "; ".join(each.text for each in self.checks if not each.allows)

    def forbids(self, name: str) -> bool:
        """Whether the limit of this name does."""
        return any(each.name == name and not each.allows for each in self.checks)


def judge(
    limits: PolicyConfig,
    readings: Readings,
    before: Verdict = Verdict(),
    *,
    training: bool = False,
    own_load: float = 0.0,
) -> Verdict:
    """Decide, knowing the verdict `before` and whether a training runs.

    `own_load` is the part of the load that training caused, see `OwnLoad`.
    """
    checks = []
    if limits.on_mains_only:
        checks.append(_mains(readings.on_mains))
    checks += [
        each.check(before)
        for each in _limits(limits, readings, own_load)
        if not (training and each.name == "available memory")
    ]
    if limits.window is not None:
        checks.append(_window(limits.window, readings.minute))
    return Verdict(tuple(checks))


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit of a number; `again` is where it allows training after it was passed."""

    name: str
    value: float | None
    limit: float
    again: float
    unit: str
    at_least: bool = False
    words: str = ""  # before the value

    def check(self, before: Verdict) -> Check:
        limit = f"limit {_shown(self.limit)}{self.unit}"
        if self.value is None:
            return Check(self.name, f"{self.name} not known, {limit}", True, None, self.limit)
        text = f"{self.words}{_shown(self.value)}{self.unit}, {limit}"
        allows = self._holds(self.limit)
        if allows and before.forbids(self.name) and not self._holds(self.again):
            allows, text = False, f"{text}, allowed again at {_shown(self.again)}{self.unit}"
        return Check(self.name, text, allows, self.value, self.limit)

    def _holds(self, limit: float) -> bool:
        assert self.value is not None
        return self.value >= limit if self.at_least else self.value <= limit


def _limits(limits: PolicyConfig, now: Readings, own_load: float) -> Iterator[_Limit]:
    if (limit := limits.min_battery_percent) is not None:
        again = max(limit, min(limit + BATTERY_MARGIN_PERCENT, FULL_PERCENT))
        yield _Limit("battery", now.battery_percent, limit, again, " %", True, "battery ")
    if (limit := limits.max_temperature_c) is not None:
        again = limit - TEMPERATURE_MARGIN_C
        yield _Limit("temperature", now.temperature_c, limit, again, " C")
    if (limit := limits.max_load_per_core) is not None:
        load = None if now.load is None else max(0.0, now.load - own_load) / now.cores
        yield _Limit("load", load, limit, limit - limit * MARGIN_SHARE, " per core", words="load ")
    if (limit := limits.max_memory_pressure_percent) is not None:
        again, name = limit - limit * MARGIN_SHARE, "memory pressure"
        yield _Limit(name, now.memory_pressure_percent, limit, again, " %", words=f"{name} ")
    if (limit := limits.min_available_memory_kib) is not None:
        again, name = limit + limit * MARGIN_SHARE, "available memory"
        yield _Limit(name, now.available_memory_kib, limit, again, " KiB", True, f"{name} ")


def _mains(on_mains: bool | None) -> Check:
    if on_mains is None:
        return Check("mains", "mains not known, mains required", True)
    text = "on mains" if on_mains else "on battery, mains required"
    return Check("mains", text, on_mains, float(on_mains))


def _window(window: str, minute: int | None) -> Check:
    start, end = (int(each[:2]) * 60 + int(each[3:]) for each in window.split("-"))
    if minute is None:
        return Check("window", f"time not known, window {window}", True)
    inside = start <= minute < end if start < end else minute >= start or minute < end
    text = f"{minute // 60:02}:{minute % 60:02}, window {window}"
    return Check("window", text, inside, float(minute))


def _shown(value: float) -> str:
    return f"{round(value, 2 if abs(value) < 10 else 1):.12g}"


class OwnLoad:
    """What training adds to the load average, by the kernel's own formula.

    Without it a training would run into the limit itself, and the next one with it.
    """

    def __init__(self, threads: int, now: float) -> None:
        self._threads = threads
        self._since = now
        self._load = 0.0

    def lasted(self, now: float, *, training: bool) -> float:
        """Count the time since the last call, in which training ran or not; return the load."""
        target = float(self._threads) if training else 0.0
        kept = math.exp(-(now - self._since) / LOAD_TIME_S)
        self._load = target + (self._load - target) * kept
        self._since = now
        return self._load
