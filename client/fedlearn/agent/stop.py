# SPDX-License-Identifier: Apache-2.0
"""The one place where the agent waits: there a stop request reaches it, and its regular duties.

Python resumes a system call that a signal interrupted (PEP 475), and runs a handler only between
two of its own instructions: a signal that comes just before the call does not even interrupt it. So
the handler of SIGTERM and SIGINT sets a flag, the interpreter's C code writes to a pipe at once
(`signal.set_wakeup_fd`), and whatever the agent waits for (its aggregator, its trainer, the next
try) it waits for in `StopSignal.wait`, beside that pipe.
What has to be done again and again in the meantime (`every`) is done there, too: a loop that hangs
elsewhere does it no more, and that is what systemd's watchdog needs to know.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

# timeout(1) sends its signal twice within milliseconds; a person who repeats it waits longer.
PATIENCE_S = 1.0


class HasFileno(Protocol):
    """What `select` can wait for."""

    def fileno(self) -> int:
        """Return the file descriptor."""


class Interruption(Exception):  # noqa: N818 - no error: it carries word to the agent's loop
    """What is being waited for must not go on."""


class Stopped(Interruption):
    """The process was asked to end."""


@dataclass(slots=True)
class _Duty:
    interval_s: float
    action: Callable[[], None]
    due: float


class StopSignal:
    """The request to end, as a flag and as something to wait for."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.requested = False
        self._since = 0.0
        self._duties: list[_Duty] = []
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def fileno(self) -> int:
        """Return a file descriptor that becomes, and stays, readable when a stop is requested."""
        return self._reader

    def install(self) -> None:
        """Take SIGTERM and SIGINT. One more, after a moment, ends the process the hard way."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def request(self) -> None:
        """Ask for the stop, from a signal handler or from anywhere else."""
        self.requested = True
        with contextlib.suppress(BlockingIOError):  # full: it is readable
            os.write(self._writer, b"\0")

    def check(self) -> None:
        """Raise `Stopped` if a stop is requested."""
        if self.requested:
            raise Stopped

    @contextlib.contextmanager
    def every(self, interval_s: float, action: Callable[[], None]) -> Iterator[None]:
        """Call `action` now, and within the block again whenever `interval_s` seconds have passed.

        What it raises ends the wait during which it was called.
        """
        action()
        duty = _Duty(interval_s, action, time.monotonic() + interval_s)
        self._duties.append(duty)
        try:
            yield
        finally:
            self._duties.remove(duty)

    def tick(self) -> None:
        """Do the duties that are due. Raises `Stopped`, and whatever they raise."""
        self.check()
        now = time.monotonic()
        for duty in [each for each in self._duties if each.due <= now]:
            duty.due = now + duty.interval_s
            duty.action()

    def wait(
        self, timeout_s: float | None, *readable: HasFileno, writable: Sequence[HasFileno] = ()
    ) -> bool:
        """Wait until one of these can be read or written, or was closed by its other side.

        False after the timeout. Raises what `tick` raises.
        """
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self.tick()
            wake = min([until, *(duty.due for duty in self._duties)])
            left_s = None if wake == math.inf else max(0.0, wake - time.monotonic())
            can_read, can_write, _ = select.select([self, *readable], writable, [], left_s)
            self.check()
            if self in can_read:  # a signal, whose handler runs before the loop begins anew
                os.read(self._reader, 64)
                continue
            if can_read or can_write:
                return True
            if time.monotonic() >= until:
                return False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = number, now
            self.request()
        elif now - self._since > PATIENCE_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
