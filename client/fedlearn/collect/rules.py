# SPDX-License-Identifier: Apache-2.0
"""Labels by rule: a statistic of one channel of the window, in the sensor's units, and a limit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedlearn.errors import ConfigError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RULE = re.compile(
    r"(?P<label>\S+) if (?:always|(?P<statistic>[a-z]+)\((?P<channel>[^()\s]+)\)"
    rf" ?(?P<comparison>[<>]) ?(?P<limit>{_NUMBER}))"
)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(_mean([value * value for value in values]))


def _std(values: Sequence[float]) -> float:
    middle = _mean(values)
    return _rms([value - middle for value in values])


STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": _mean,
    "rms": _rms,
    "std": _std,
    "min": min,
    "max": max,
    "range": lambda values: max(values) - min(values),
    "peak": lambda values: max(abs(value) for value in values),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """`label` for a window whose `statistic` of `channel` is above (or below) `limit`."""

    label: int
    statistic: Callable[[Sequence[float]], float] | None  # None: always
    channel: int = 0
    above: bool = True
    limit: float = 0.0

    def holds(self, channel: Callable[[int], Sequence[float]]) -> bool:
        """Whether it holds, given a function that returns the values of a channel."""
        if self.statistic is None:
            return True
        value = self.statistic(channel(self.channel))
        return value > self.limit if self.above else value < self.limit


def class_number(text: str, classes: Sequence[str]) -> int | None:
    """The class of this name, or this number; None when there is none."""
    if text in classes:
        return classes.index(text)
    # Six digits at most: enough for every model, and what `int` makes of more takes long.
    if text.isascii() and text.isdigit() and len(text) <= 6:
        number = int(text)
        if not classes or number < len(classes):
            return number
    return None


def parse_rules(
    rules: Sequence[str], channels: Sequence[str], classes: Sequence[str]
) -> tuple[Rule, ...]:
    """Read `samples.rules`; raise ConfigError for one that cannot be."""
    return tuple(_parse(text, channels, classes) for text in rules)


def _parse(text: str, channels: Sequence[str], classes: Sequence[str]) -> Rule:
    found = _RULE.fullmatch(" ".join(text.split()))
    if found is None:
        raise ConfigError(
            f"samples.rules: {text!r} is no rule",
            hint='such as "1 if rms(ax) > 0.8", "0 if max(temperature) < 40" or "0 if always"',
        )
    label = class_number(found["label"], classes)
    if label is None:
        raise ConfigError(
            f"samples.rules: there is no class {found['label']}",
            hint=f"known: {', '.join(classes) or 'numbers from 0 on'}",
        )
    if found["statistic"] is None:
        return Rule(label, None)
    if found["statistic"] not in STATISTICS:
        raise ConfigError(
            f"samples.rules: there is no statistic {found['statistic']}",
            hint=f"known: {', '.join(STATISTICS)}",
        )
    if found["channel"] not in channels:
        raise ConfigError(
            f"samples.rules: there is no channel {found['channel']}",
            hint=f"known: {', '.join(channels)}",
        )
    return Rule(
        label,
        STATISTICS[found["statistic"]],
        channels.index(found["channel"]),
        found["comparison"] == ">",
        float(found["limit"]),
    )
