# SPDX-License-Identifier: Apache-2.0
"""Processes that never outlive the demo, whatever happens to it.

Each child leads a session of its own: Ctrl-C reaches the demo alone, which then stops the children
in order, and whatever they have started is found by its session. Should the demo be killed, the
kernel kills the children (PR_SET_PDEATHSIG), and theirs find their pipe closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fedlearn.errors import FedlearnError

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
# An agent or the aggregator needs a fraction of a second; a loaded machine some more.
STOP_GRACE_S = 5.0
_POLL_S = 0.02
_LOG_TAIL_BYTES = 2000

_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Child:
    """A running process; `log` takes its stdout and stderr."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its session."""
        return self.process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended. It is not reaped, so that the ids stay its own until `close`."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None

    def last_words(self) -> str:
        """Return the last line that it logged."""
        with self.log.open("rb") as stream:
            stream.seek(max(0, self.log.stat().st_size - _LOG_TAIL_BYTES))
            lines = stream.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it said nothing"


class Nursery:
    """A context manager: its children are gone when it is left."""

    def __init__(self) -> None:
        self.children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, name: str, command: Sequence[str], log: Path) -> Child:
        """Start a process."""
        parent = os.getpid()

        def tie() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the call above
                os._exit(1)

        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=tie,  # noqa: PLW1509 - the demo has one thread
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def check(self) -> None:
        """Raise FedlearnError if a child has ended: all of them are meant to go on."""
        for child in self.children:
            if child.ended:
                raise FedlearnError(
                    f"{child.name} ended unexpectedly: {child.last_words()}",
                    hint=f"its log is {child.log}",
                )

    def close(self) -> None:
        """Stop all children: SIGTERM, `STOP_GRACE_S` of patience, SIGKILL to what is left."""
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
        give_up = time.monotonic() + STOP_GRACE_S
        while time.monotonic() < give_up and not all(child.ended for child in self.children):
            time.sleep(_POLL_S)
        for child in self.children:
            # The leader is not reaped yet, so the session's id cannot belong to anybody else.
            for pid in _session(child.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            child.process.wait()
        self.children.clear()


def _session(leader: int) -> list[int]:
    """Process ids of a session, also of those whose parent has gone."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(entry.name)) == leader:
                    found.append(int(entry.name))
    return found
