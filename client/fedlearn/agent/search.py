# SPDX-License-Identifier: Apache-2.0
"""The agent's side of `fedlearn.agent.discovery`: a search for aggregators in a short-lived child.

mDNS is not authenticated (RFC 6762, section 21): what is found is a hint where to connect, and the
TLS handshake decides.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, cast

from fedlearn.agent.stop import StopSignal
from fedlearn.errors import NetworkError
from fedlearn.text import clean

SEARCHER = (sys.executable, "-I", "-m", "fedlearn.agent.discovery")
# The child caps what it reports; a line above this is none of its own.
MAX_LINE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """An aggregator that calls itself one of the task."""

    instance: str
    address: str  # IPv4
    port: int
    tls: bool


class Search:
    """A running search; used as a context manager, which ends it."""

    def __init__(
        self,
        task: str,
        interfaces: Sequence[str],
        stop: StopSignal,
        *,
        time_limit_s: float,
        command: Sequence[str] = SEARCHER,
    ) -> None:
        self._stop = stop
        self._deadline = time.monotonic() + time_limit_s
        options = [f"--interface={each}" for each in interfaces]
        try:
            self._process = subprocess.Popen(
                [*command, f"--task={task}", f"--time-limit-s={time_limit_s}", *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                process_group=0,  # Ctrl-C in a terminal is for the agent, which ends the child
            )
        except OSError as error:
            raise NetworkError(f"cannot start the search by mDNS: {error.strerror}") from error

    def __enter__(self) -> Search:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._process:
            self._process.kill()  # it has nothing to save

    def __iter__(self) -> Iterator[Found]:
        """Yield aggregators as they are found, until the time limit.

        Raises `NetworkError` when there is no network to search, and `Stopped`.
        """
        for line in self._lines():
            with contextlib.suppress(ValueError, TypeError, LookupError):
                values = json.loads(line)
                if "error" in values:
                    raise NetworkError(clean(values["error"]), hint=clean(values["hint"]))
                found = Found(
                    clean(values["instance"]),
                    str(ipaddress.IPv4Address(values["address"])),
                    int(values["port"]),
                    bool(values["tls"]),
                )
                yield found

    def end_within(self, seconds: float) -> None:
        """Move the time limit closer."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def _lines(self) -> Iterator[bytes]:
        pipe = cast(IO[bytes], self._process.stdout)
        received = b""
        while len(received) <= MAX_LINE_BYTES:
            left_s = self._deadline - time.monotonic()
            if left_s <= 0 or not self._stop.wait(left_s, pipe):
                return
            chunk = os.read(pipe.fileno(), MAX_LINE_BYTES)
            if not chunk:
                if code := self._process.wait():
                    raise NetworkError(f"the search by mDNS failed with exit code {code}")
                return
            *lines, received = (received + chunk).split(b"\n")
            yield from lines
