# SPDX-License-Identifier: Apache-2.0
"""What a device's processes cost: resident memory and CPU time, from /proc."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

_KIB = 1024
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of a process: now, and at its peak (VmHWM)."""

    rss_bytes: int
    peak_bytes: int


def memory(pid: int) -> Memory | None:
    """Read a process's memory; None when it has ended."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    values = dict(line.split(":", 1) for line in lines)
    if "VmRSS" not in values:  # a zombie has none
        return None
    rss, peak = (int(values[key].split()[0]) * _KIB for key in ("VmRSS", "VmHWM"))
    return Memory(rss, peak)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process (all threads, not its children): clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def _command(pid: int) -> bytes:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def child_pids(pid: int) -> list[int]:
    """Process ids of all descendants that run a program of their own.

    Between vfork and exec a child is still its parent's image: the same pages, no second copy.
    """
    found: list[int] = []
    own = _command(pid)
    for listing in (_PROC / str(pid) / "task").glob("*/children"):
        try:
            children = [int(each) for each in listing.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            if _command(child) != own:
                found += [child, *child_pids(child)]
    return found


class Meter:
    """Follows one device: its agent and whatever the agent starts."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.sampled_peak_bytes = 0
        self._agent_peak_bytes = 0
        self._trainer_peak_bytes = 0

    @property
    def peak_bytes(self) -> int:
        """Peak of the process tree: the sum of the kernel's own peaks, which no sample exceeds."""
        return self._agent_peak_bytes + self._trainer_peak_bytes

    @property
    def idle(self) -> bool:
        """Whether the agent is alone. A trainer that ended, if not yet reaped, holds no memory."""
        return not any(memory(child) for child in child_pids(self.pid))

    def sample(self) -> None:
        """Look at the tree once. Peaks outlast short moments between two looks."""
        agent = memory(self.pid)
        if agent is None:
            return
        children = [found for child in child_pids(self.pid) if (found := memory(child))]
        tree = agent.rss_bytes + sum(child.rss_bytes for child in children)
        self.sampled_peak_bytes = max(self.sampled_peak_bytes, tree)
        self._agent_peak_bytes = max(self._agent_peak_bytes, agent.peak_bytes)
        self._trainer_peak_bytes = max(
            self._trainer_peak_bytes, sum(child.peak_bytes for child in children)
        )
