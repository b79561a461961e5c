# SPDX-License-Identifier: Apache-2.0
"""What the devices cost when there is nothing to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from fedlearn_demo.meter import Meter, cpu_s, memory

# A held check-in should cost nothing at all; a timer or a poll of the agent's own would be seen.
MEASURE_S = 5.0


@dataclass(frozen=True, slots=True)
class Idle:
    """Resident bytes of the largest agent; CPU time of the mean one in percent of a core."""

    rss_bytes: int
    cpu_percent: float


def measure_idle(meters: Sequence[Meter], pause: Callable[[], None]) -> Idle:
    """Look at agents that wait for work for `MEASURE_S`; `pause` lets a little time pass."""
    before = [cpu_s(meter.pid) for meter in meters]
    start = time.monotonic()
    while (passed_s := time.monotonic() - start) < MEASURE_S:
        pause()
    used_s = mean(cpu_s(meter.pid) - b for meter, b in zip(meters, before, strict=True))
    found = [memory(meter.pid) for meter in meters]
    return Idle(max(each.rss_bytes for each in found if each), 100 * used_s / passed_s)
