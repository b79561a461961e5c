# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the aggregator at random points: nothing acknowledged is lost or counted twice.

Every device delivers in every round, so the final model is that of an undisturbed run to the bit,
if and only if each update counts once. Against `hasty`, which acknowledges before it commits, the
same must find updates that are lost.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlearn.wire.messages import TrainOrder
from tests.aggregator.devices import Device
from tests.aggregator.process import init, run
from tests.benchmarks.faults.processes import free_port, percentile

SERVING_WITHIN_S = 5.0
# Until the next kill, from the start of the process: also before it serves.
LIFE_S = (0.0, 2.5)
_START_S = 1.0
_PATIENCE_S = 120.0


@dataclass
class Fleet:
    """Devices on threads, who go on whatever happens to the aggregator."""

    port: int
    names: list[str]
    acked: dict[tuple[int, str], str] = field(default_factory=dict)  # to the body's SHA-256
    finished: threading.Event = field(default_factory=threading.Event)
    acknowledged: threading.Event = field(default_factory=threading.Event)

    def start(self) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._live, args=(name,)) for name in self.names]
        for each in threads:
            each.start()
        return threads

    def _live(self, name: str) -> None:
        device = Device(f"http://127.0.0.1:{self.port}", name, timeout_s=30.0)
        while not self.finished.is_set():
            try:
                self._round(device)
            except (OSError, http.client.HTTPException, AssertionError):
                device.close()
                time.sleep(0.05)
        device.close()

    def _round(self, device: Device) -> None:
        answer = device.check_in()
        if not isinstance(answer, TrainOrder):
            if answer.reason == "the task is finished":
                self.finished.set()
            self.finished.wait(min(answer.retry_s, 0.2))
            return
        body = device.train(answer)
        while not self.finished.is_set():
            try:
                reply = device.send(answer.round, body)
            except (OSError, http.client.HTTPException):
                device.close()
                time.sleep(0.05)
                continue
            if reply.status in (200, 201):
                self.acked[answer.round, device.name] = hashlib.sha256(body).hexdigest()
                self.acknowledged.set()
            return


def ordeal(
    folder: Path, *, kills: int, rounds: int, devices: int, seed: int = 1, module: str = ""
) -> dict[str, Any]:
    """Run it; figures. `module` is served in the place of the aggregator's own."""
    folder.mkdir(parents=True, exist_ok=True)
    random.seed(seed)
    # So that the rounds last for all kills, each with the start after it.
    interval_s = kills * (sum(LIFE_S) / 2 + _START_S) / rounds
    calm = _federate(folder / "calm", 0, rounds, devices, 0.0)
    hit = _federate(folder / "killed", kills, rounds, devices, interval_s, module)
    return {
        "kills": hit.kills,
        "rounds": rounds,
        "devices": devices,
        "acknowledged": len(hit.acked),
        "lost": hit.lost,
        "counted_twice": hit.twice,
        "same_model": hit.digest == calm.digest,
        "serving_again_s_max": round(max(hit.starts_s, default=0.0), 2),
        "serving_again_s_median": round(percentile(hit.starts_s, 0.5), 2),
    }


def faults(figures: dict[str, Any]) -> list[str]:
    """What does not hold."""
    return [
        what
        for what, holds in (
            ("an acknowledged update is lost", not figures["lost"]),
            ("an update counts twice", not figures["counted_twice"]),
            ("the final model is another one", figures["same_model"]),
            ("it serves too late", figures["serving_again_s_max"] <= SERVING_WITHIN_S),
        )
        if not holds
    ]


@dataclass
class _Outcome:
    kills: int
    acked: dict[tuple[int, str], str]
    lost: int
    twice: int
    digest: str
    starts_s: list[float]


def _federate(
    folder: Path, kills: int, rounds: int, devices: int, interval_s: float, module: str = ""
) -> _Outcome:
    port = free_port()
    names = [f"device-{number:02}" for number in range(devices)]
    init(
        folder,
        *("--cohort", str(devices), "--minimum", str(devices), "--over-selection", "1"),
        *("--rounds", str(rounds), "--seed", "7", "--deadline-s", "3600"),
        *("--round-interval-s", str(interval_s), "--keep-updates", str(rounds), "--tokens", "0"),
    )
    fleet = Fleet(port, names)
    starts_s: list[float] = []
    done = 0
    process = _serve(folder, port, module)
    threads = fleet.start()
    try:
        _until_serving(port, process)
        while done < kills and not fleet.finished.is_set():
            if module:  # as soon as something is acknowledged that is not on the disk
                fleet.acknowledged.wait(_PATIENCE_S)
                fleet.acknowledged.clear()
            else:
                time.sleep(random.uniform(*LIFE_S))
            process.kill()
            process.wait()
            done += 1
            process = _serve(folder, port, module)
            if random.random() < 0.7:  # the others are killed while they start, perhaps
                starts_s.append(_until_serving(port, process))
        if module:
            fleet.finished.set()
        if not fleet.finished.wait(_PATIENCE_S):
            raise AssertionError("the rounds do not end")
    finally:
        fleet.finished.set()
        for each in threads:
            each.join()
        process.terminate()
        process.wait()
    kept = _kept(folder)
    lost = sum(kept.get(key) != digest for key, digest in fleet.acked.items())
    twice = sum(count != devices for count in _counts(folder)) if not module else 0
    return _Outcome(done, fleet.acked, lost, twice, _digest(folder), starts_s)


def _serve(folder: Path, port: int, module: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", module or "fedlearn_aggregator", "serve"),
                *("--data-dir", str(folder), "--insecure", "--no-mdns", "--port", str(port)),
            ],
            stdout=log,
            stderr=log,
        )


def _until_serving(port: int, process: subprocess.Popen[bytes]) -> float:
    began = time.monotonic()
    while time.monotonic() - began < _PATIENCE_S:
        assert process.poll() is None, "the aggregator does not start"
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            with closing(connection):
                connection.request("GET", "/healthz")
                if connection.getresponse().read() == b"ok":
                    return time.monotonic() - began
        time.sleep(0.01)
    raise AssertionError("the aggregator does not serve")


def _kept(folder: Path) -> dict[tuple[int, str], str]:
    return _read(
        folder,
        "SELECT round, device, hex(digest) FROM updates",
        lambda rows: {(number, device): digest.lower() for number, device, digest in rows},
    )


def _counts(folder: Path) -> list[int]:
    """Updates of each round that is closed."""
    query = (
        "SELECT count(*) FROM updates JOIN rounds ON number = round "
        "WHERE state = 'closed' GROUP BY round"
    )
    return _read(folder, query, lambda rows: [row[0] for row in rows])


def _read(folder: Path, query: str, make: Callable[[list[Any]], Any]) -> Any:
    with closing(sqlite3.connect(f"file:{folder}/aggregator.sqlite?mode=ro", uri=True)) as db:
        return make(db.execute(query).fetchall())


def _digest(folder: Path) -> str:
    target = folder / "out.tflite"
    done = run("export", "--data-dir", str(folder), str(target))
    assert done.returncode == 0, done.stderr
    return hashlib.sha256(target.read_bytes()).hexdigest()
