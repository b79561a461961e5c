# SPDX-License-Identifier: Apache-2.0
"""Stands for the sensors: plays streams into pseudo-terminals, as fast as asked.

`python -m fedlearn_demo.gestures.replay SPEED FILE PORT [FILE PORT ...]`: the lines of each file go
to a port of that name, `SPEED` times as fast as they were recorded; 0: as fast as they are taken.
A port gets its lines once somebody has opened it; behind the last one it stays, silent.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import sys
import time
import tty
from collections.abc import Sequence
from pathlib import Path

from fedlearn_demo.gestures.watch import RATE_HZ

_BEGIN = b"\n"  # whoever opens a port takes nothing for a line before it has seen the end of one
# As an Arduino, which starts anew when its port is opened. Who opens one empties its buffer last.
_BOOT_S = 1.0
_TICK_S = 0.01


class Port:
    """One pseudo-terminal and what is left to be sent to it."""

    def __init__(self, lines: bytes, name: Path) -> None:
        self._end, other = pty.openpty()
        tty.setraw(other)
        os.set_blocking(self._end, False)
        name.unlink(missing_ok=True)
        name.symlink_to(os.ttyname(other))
        os.close(other)
        self._lines = [_BEGIN, *lines.splitlines(keepends=True)]
        self._began_s: float | None = None
        self._sent = 0
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(self._end, select.POLLOUT)

    @property
    def done(self) -> bool:
        """Whether all is sent."""
        return self._sent == len(self._lines) and not self._rest

    def play(self, speed: float, now_s: float) -> None:
        """Send what is due."""
        if self._began_s is None:
            if not self._open():
                return
            self._began_s = now_s + _BOOT_S
        if now_s < self._began_s:
            return
        due = len(self._lines)
        if speed:
            due = min(due, 1 + int((now_s - self._began_s) * RATE_HZ * speed))
        if not self._rest:
            last = min(due, self._sent + 200)
            self._rest = b"".join(self._lines[self._sent : last])
            self._sent = last
        with contextlib.suppress(BlockingIOError):
            self._rest = self._rest[os.write(self._end, self._rest) :]

    def _open(self) -> bool:
        """Whether somebody has the other end: without that, it is hung up."""
        return not any(event & select.POLLHUP for _, event in self._poll.poll(0))


def main(speed: float, pairs: Sequence[str]) -> int:
    """Play until all is sent, then wait to be stopped."""
    ports = [
        Port(Path(file).read_bytes(), Path(name))
        for file, name in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    while not all(port.done for port in ports):
        for port in ports:
            port.play(speed, time.monotonic())
        time.sleep(_TICK_S if speed else _TICK_S / 10)
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
