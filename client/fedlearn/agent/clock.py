# SPDX-License-Identifier: Apache-2.0
"""The time on a board that may have no clock of its own.

A Raspberry Pi comes up with the time of its image, or of its last shutdown. What cannot be: that it
is earlier than the CA of its aggregator was made, than its own certificate was issued, or than the
aggregator, which has proved who it is, last said (the Date of HTTP, RFC 9110, section 6.6.1).
"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime


class Clock:
    """Unix seconds, never before what is known to be past."""

    def __init__(self) -> None:
        self._floor = 0.0
        self._known_at = 0.0

    def now(self) -> float:
        """The later of the system's clock and what is known."""
        return max(time.time(), self._least())

    @property
    def is_behind(self) -> bool:
        """Whether the system's clock is wrong: what a library checks against it means nothing."""
        return time.time() < self._least()

    def learn(self, seconds: float) -> None:
        """It is that late at least."""
        if seconds > self._least():
            self._floor, self._known_at = seconds, _elapsed()

    def hear(self, date: str | None) -> None:
        """Take the Date of an answer; what is none is ignored."""
        try:
            self.learn(parsedate_to_datetime(date or "").timestamp())
        except (ValueError, TypeError, OverflowError):
            return

    def _least(self) -> float:
        return self._floor + (_elapsed() - self._known_at) if self._floor else 0.0


def _elapsed() -> float:
    """Seconds that nobody sets, and that go on while the board sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
