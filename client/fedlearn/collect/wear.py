# SPDX-License-Identifier: Apache-2.0
"""How much the ring may write: a token bucket, so that a flood does not wear out a memory card."""

from __future__ import annotations

_DAY_S = 86_400.0


class Allowance:
    """Bytes that may be written: `per_day` on the average, `at_once` after a time of rest."""

    def __init__(self, per_day: float, at_once: float, now_s: float) -> None:
        self._rate = per_day / _DAY_S
        self._most = self._left = at_once
        self._now_s = now_s

    def take(self, count: int, now_s: float) -> bool:
        """Whether `count` bytes may be written now; `now_s` of a monotonic clock."""
        self._left = min(self._most, self._left + self._rate * (now_s - self._now_s))
        self._now_s = now_s
        if count > self._left:
            return False
        self._left -= count
        return True
