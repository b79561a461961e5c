# SPDX-License-Identifier: Apache-2.0
"""A clean stop: SIGTERM or SIGINT ends every wait of the agent at once.

Python resumes a system call that a signal interrupted (PEP 475). So the handler sets a flag, makes
a file descriptor readable for those who wait in `select`, and calls the `interrupts` of those who
wait elsewhere: the connection shuts its socket down, the trainer kills its process.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

# timeout(1) sends its signal twice within milliseconds; a person who repeats it waits longer.
PATIENCE_S = 1.0


class HasFileno(Protocol):
    """What `select` can wait for."""

    def fileno(self) -> int:
        """Return the file descriptor."""


class Stopped(Exception):  # noqa: N818 - no error: it carries a request to the agent's loop
    """The process was asked to end."""


class StopSignal:
    """The request to end, as a flag and as something to wait for."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.requested = False
        self._since = 0.0
        self.interrupts: list[Callable[[], None]] = []
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Return a file descriptor that becomes, and stays, readable when a stop is requested."""
        return self._event

    def install(self) -> None:
        """Take SIGTERM and SIGINT. One more, after a moment, ends the process the hard way."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def request(self) -> None:
        """Ask for the stop, from a signal handler or from anywhere else."""
        self.requested = True
        os.eventfd_write(self._event, 1)
        for interrupt in self.interrupts:
            interrupt()

    def check(self) -> None:
        """Raise `Stopped` if a stop is requested."""
        if self.requested:
            raise Stopped

    def wait(
        self, timeout_s: float | None, *readable: HasFileno, writable: Sequence[HasFileno] = ()
    ) -> bool:
        """Wait until one of these can be read or written, or was closed by its other side.

        False after the timeout. Raises `Stopped`.
        """
        can_read, can_write, _ = select.select([self, *readable], writable, [], timeout_s)
        self.check()
        return bool(can_read or can_write)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = number, now
            self.request()
        elif now - self._since > PATIENCE_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
