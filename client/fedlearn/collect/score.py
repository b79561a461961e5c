# SPDX-License-Identifier: Apache-2.0
"""The collecting process's side of the scorer, a child that holds NumPy and the interpreter.

Windows go out as raw bytes, scores come back as lines of JSON. The stream never waits for the
scorer: a window that finds its pipe full is not scored. When the scorer dies it is started again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from fedlearn.collect.grid import Grid
from fedlearn.collect.report import Score
from fedlearn.text import clean

SCORER = (sys.executable, "-I", "-m", "fedlearn.collect.scorer")
# Without a usable model it ends by itself. There may be one by then, or never: the pauses grow.
RESTART_S, MAX_RESTART_S = 30.0, 3600.0
_END_TIMEOUT_S = 1.0
_READ_BYTES = 64 * 1024
_NICENESS = 10
_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

logger = logging.getLogger(__name__)


class Scorer:
    """Scores windows in a child process. `offer` and `poll` never block."""

    def __init__(
        self, models: Path, ring: Path, grid: Grid, quantile: float, command: Sequence[str] = SCORER
    ) -> None:
        self._models = models
        self._command = [*command, str(models), str(ring), str(quantile), grid.to_json().decode()]
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent = b""
        self._answer = b""
        self._not_before = 0.0
        self._pause_s = RESTART_S
        self.latest: Score | None = None
        self.anomalies = 0
        self.missed = 0

    def offer(self, window: bytes) -> None:
        """Let a window be scored, if the scorer keeps up."""
        if self._process is None and not self._start():
            self.missed += 1
            return
        if self._unsent:
            self._send()
        if self._unsent:
            self.missed += 1
            return
        self._unsent = window
        self._send()

    def poll(self) -> None:
        """Take the scores that have come."""
        if self._process is None:
            return
        try:
            data = os.read(self._stream(self._process.stdout).fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        *lines, self._answer = (self._answer + data).split(b"\n")
        for line in lines:
            self._take(line)

    def close(self) -> None:
        """End the child."""
        process, self._process = self._process, None
        if process is None:
            return
        self._wait_longer()
        self._unsent = self._answer = b""
        with contextlib.suppress(BrokenPipeError):
            self._stream(process.stdin).close()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._stream(process.stdout).close()

    def _start(self) -> bool:
        if time.monotonic() < self._not_before or not any(self._models.glob("*.tflite")):
            return False
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, **_THREADS},
                process_group=0,
            )
        except OSError as error:
            logger.warning("cannot start the scorer: %s", error.strerror)
            self._wait_longer()
            return False
        for stream in (process.stdin, process.stdout):
            os.set_blocking(self._stream(stream).fileno(), False)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
        self._process = process
        return True

    def _send(self) -> None:
        assert self._process is not None
        try:
            count = os.write(self._stream(self._process.stdin).fileno(), self._unsent)
            self._unsent = self._unsent[count:]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.close()

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            threshold = values["threshold"]
            self.latest = Score(
                float(values["score"]),
                None if threshold is None else float(threshold),
                str(values["model"]),
                time.time(),
            )
        except (ValueError, TypeError, LookupError):
            logger.warning("the scorer says: %s", clean(line.decode(errors="replace")))
            return
        self._pause_s = RESTART_S
        self.anomalies += bool(self.latest.anomaly)

    def _wait_longer(self) -> None:
        self._not_before = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_RESTART_S)

    @staticmethod
    def _stream(stream: object) -> BinaryIO:
        return cast(BinaryIO, stream)
