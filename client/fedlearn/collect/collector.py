# SPDX-License-Identifier: Apache-2.0
"""The collecting process: reads the source, fills the ring, and never gives up.

It is a process of its own and not a thread or child of the agent: it has the sensor and no network,
the agent has the network and no sensor; each is fenced in accordingly, and neither dies of the
other. It holds no NumPy, so a board pays some 15 MB for it.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fedlearn.agent.machine import Backoff
from fedlearn.agent.status import rss_bytes
from fedlearn.agent.stop import Stopped, StopSignal
from fedlearn.collect import report
from fedlearn.collect.grid import Grid
from fedlearn.collect.report import CollectStatus
from fedlearn.collect.ring import RingWriter
from fedlearn.collect.rules import parse_rules
from fedlearn.collect.sample import Counts, Item, Source, SourceEnded, SourceLost
from fedlearn.collect.score import Scorer
from fedlearn.collect.segment import record_bytes
from fedlearn.collect.sources import Opener
from fedlearn.collect.wear import Allowance
from fedlearn.collect.windows import Window, Windower
from fedlearn.config import Config
from fedlearn.durable import storage_errors
from fedlearn.errors import FedlearnError, StorageError
from fedlearn.notify import Notifier
from fedlearn.text import clean

# A cable that is put back, or a microcontroller that restarts, is there again within seconds.
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 2.0
# What held for so long is not what fails whenever it is opened.
STEADY_S = 10.0
# A stop request, and the status, wait no longer than this.
READ_TIMEOUT_S = 0.25
TICK_S = 1.0
# The rate that is shown is that of so many ticks.
_RATE_TICKS = 5
# With so many bytes and not one sample something is wrong that a person must mend.
_SILENT_BYTES = 2000
_MIB = 1024 * 1024

logger = logging.getLogger(__name__)


class Collector:
    """One sensor's stream into one ring. `run` returns at a stop request or a file's end."""

    def __init__(
        self, config: Config, stop: StopSignal, base: Path, notifier: Notifier | None = None
    ) -> None:
        """Relative paths of one's own source start at `base`."""
        source, samples = config.source, config.samples
        assert config.ring.path is not None
        self._stop, self._notifier = stop, notifier or Notifier()
        self._grid = Grid.of(samples)
        self._counts = Counts()
        self._opener = Opener(source, samples, config.ring.path, base, self._counts)
        self._windower = Windower(
            self._grid,
            samples.stride,
            self._counts,
            rules=parse_rules(samples.rules, samples.channels, samples.classes),
            max_gap_s=samples.max_gap_s,
        )
        self._ring = RingWriter(config.ring.path, self._grid, config.ring)
        self._wear = Allowance(
            config.ring.max_mib_a_day * _MIB, config.ring.size_kib * 1024, time.monotonic()
        )
        self._scorer = None
        if config.score.enabled:
            models = config.device.state_dir / "models"
            self._scorer = Scorer(models, config.ring.path, self._grid, config.score.quantile)
        self._backoff = Backoff(FIRST_DELAY_S, MAX_DELAY_S, random.uniform)
        self._status_path = config.device.runtime_dir / report.FILE
        self._status = CollectStatus(
            pid=os.getpid(),
            started=time.time(),
            source=_name(config),
            grid=self._grid.fingerprint,
        )
        self._format = source.format
        self._rates: list[tuple[float, int]] = []
        self._told = ""
        self._seen_bytes = self._seen_samples = 0

    def run(self) -> None:
        """Collect."""
        with storage_errors("create", self._status_path.parent):
            self._status_path.parent.mkdir(parents=True, exist_ok=True)
        self._notifier.ready()
        logger.info("%s: windows of grid %s", self._status.source, self._grid.fingerprint)
        watched = self._notifier.watchdog_s or 3600.0
        try:
            with (
                self._stop.every(TICK_S, self._tick),
                self._stop.every(watched, self._notifier.alive),
            ):
                self._collect()
        except Stopped:
            logger.info("stopped")
        except SourceEnded:
            logger.info("the source has ended")
        finally:
            self._notifier.stopping()
            self._close()

    def _close(self) -> None:
        if self._scorer is not None:
            self._scorer.close()
        try:
            self._ring.close()
        finally:
            self._status = replace(self._status, state="stopped")
            self._tick()

    def _collect(self) -> None:
        while True:
            source = self._open()
            if source is None:
                self._stop.wait(self._backoff.next_delay_s())
                continue
            self._counts.opened += 1
            self._show("reading")
            since_s = time.monotonic()
            try:
                self._read(source)
            except SourceLost as lost:
                self._failed(f"{lost}")
            except OSError as error:
                self._failed(error.strerror or str(error))
            finally:
                source.close()
                self._windower.restart()
            if time.monotonic() - since_s > STEADY_S:
                self._backoff.reset()
            self._stop.wait(self._backoff.next_delay_s())

    def _open(self) -> Source | None:
        try:
            return self._opener.open()
        except FedlearnError as error:
            self._failed(str(error))
        except Exception as error:  # somebody's own class
            self._failed(f"{type(error).__name__}: {error}")
        return None

    def _read(self, source: Source) -> None:
        while True:
            self._stop.tick()
            try:
                items = source.read(READ_TIMEOUT_S)
            except (SourceLost, SourceEnded, OSError, FedlearnError):
                raise
            except Exception as error:  # somebody's own class
                raise SourceLost(f"{type(error).__name__}: {error}") from error
            self._take(items)
            self._judge()

    def _take(self, items: Iterable[Item]) -> None:
        now_ms = int(1000 * time.time())
        for item in items:
            for window in self._windower.push(item, now_ms):
                self._keep(window)

    def _judge(self) -> None:
        """Tell a stream of samples from one of bytes alone."""
        if self._counts.samples > self._seen_samples:
            self._seen_samples, self._seen_bytes = self._counts.samples, self._counts.bytes
            if self._status.last_error:
                self._status = replace(self._status, last_error="")
        elif self._counts.bytes - self._seen_bytes > _SILENT_BYTES:
            self._seen_bytes = self._counts.bytes
            self._complain(
                f"{_SILENT_BYTES} bytes and no sample among them: are source.baud, source.format "
                f"({self._format}), source.labelled and samples.channels those of the sender?"
            )

    def _keep(self, window: Window) -> None:
        if self._scorer is not None:
            self._scorer.offer(window.data)
        if not self._wear.take(record_bytes(self._grid), time.monotonic()):
            self._status = replace(self._status, refused=self._status.refused + 1)
            return
        try:
            self._ring.add(window)
        except StorageError as error:
            self._unwritten(error)

    def _unwritten(self, error: StorageError) -> None:
        self._complain(str(error))
        self._status = replace(self._status, unwritten=self._status.unwritten + 1)

    def _failed(self, reason: str) -> None:
        self._counts.failures += 1
        self._complain(reason)
        self._show("waiting for the sensor")

    def _complain(self, problem: str) -> None:
        problem = clean(problem, 400)
        if problem != self._told:  # once, not every few seconds for a night
            logger.warning("%s", problem)
        self._told = problem
        self._status = replace(self._status, last_error=problem)

    def _show(self, state: str) -> None:
        self._status = replace(self._status, state=state)
        self._notifier.status(state)

    def _tick(self) -> None:
        """Once a second: the disk, the scores, the status."""
        try:
            self._ring.tick()
        except StorageError as error:
            self._unwritten(error)
        score, anomalies = self._status.score, self._status.anomalies
        if self._scorer is not None:
            self._scorer.poll()
            score, anomalies = self._scorer.latest, self._scorer.anomalies
        self._rates = [*self._rates, (time.monotonic(), self._counts.samples)][-_RATE_TICKS - 1 :]
        (then_s, then), (now_s, now) = self._rates[0], self._rates[-1]
        self._status = replace(
            self._status,
            counts=self._counts,
            rate_hz=round((now - then) / (now_s - then_s), 2) if now_s > then_s else 0.0,
            stored=self._ring.stored,
            dropped_segments=self._ring.dropped_segments,
            rss_bytes=rss_bytes(),
            score=score,
            anomalies=anomalies,
        )
        try:
            report.write(self._status_path, self._status)
        except StorageError as error:
            self._complain(str(error))


def _name(config: Config) -> str:
    source = config.source
    what = {"serial": source.port, "file": str(source.path), "own": source.use}.get(source.kind, "")
    return f"{source.kind} {what}".strip()
