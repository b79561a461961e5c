# SPDX-License-Identifier: Apache-2.0
"""A disk that refuses at every write: 5xx, no acknowledgement, and on when it is well again.

Two ways, each at many points of the data that a request writes. ENOSPC: the store is on a tmpfs of
its own with room for so many bytes and no more. EIO, or what SQLite makes of it: the process may
not write beyond an offset of any file (RLIMIT_FSIZE: EFBIG, which SQLite calls an I/O error).

    python -m tests.benchmarks.faults.disk FOLDER POINTS

is the part that runs in a mount namespace of its own.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from fedlearn.wire import codec
from fedlearn.wire.messages import CheckIn, TrainOrder, Wait
from tests.aggregator.devices import MAX_BYTES, TASK, Device
from tests.aggregator.process import Aggregator, init, serve

PAGE = 4096
TMPFS_BYTES = 16 * 1024 * 1024
# A seat and an update of 9 kB take eight pages of the write-ahead log, each with a head.
_LOG_BYTES = 8 * (PAGE + 24)


def ordeal(folder: Path, *, points: int, ack_anyway: bool = False) -> dict[str, Any]:
    """Both ways, in a namespace; figures. Raises OSError where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    module = [sys.executable, "-m", "tests.benchmarks.faults.disk", str(folder), str(points)]
    figures: dict[str, Any] = json.loads(
        in_namespace([*module, *(["--ack-anyway"] if ack_anyway else [])])
    )
    return figures


def in_namespace(command: list[str]) -> str:
    """What a command prints in a mount namespace of its own. Raises OSError where there is none."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", *user, "--mount", *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"no namespace, or no end: {done.stderr[-2000:]}")
    return done.stdout


def faults(figures: dict[str, Any]) -> list[str]:
    """What does not hold."""
    return [
        f"{way}: {what}"
        for way in ("no_space", "io_error")
        for what, holds in (
            ("the disk never refused", figures[way]["refused"] > 0),
            ("an acknowledged update is lost", not figures[way]["lost"]),
            ("an answer was neither success nor 5xx", not figures[way]["other_answers"]),
            ("it did not go on", not figures[way]["stuck"]),
            ("the database is damaged", figures[way]["intact"]),
        )
        if not holds
    ]


@contextmanager
def _full_tmpfs(aggregator: Aggregator, folder: Path, room: int) -> Iterator[None]:
    """Room for so many bytes, in whole pages, and then none."""
    ballast = folder / "ballast"
    with ballast.open("wb") as stream:
        while True:
            stat = os.statvfs(folder)
            taken = stat.f_bavail * stat.f_bsize - room // PAGE * PAGE
            with suppress(OSError):  # the aggregator has written meanwhile
                os.posix_fallocate(stream.fileno(), 0, max(taken, PAGE))
                break
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def _limited_files(aggregator: Aggregator, folder: Path, room: int) -> Iterator[None]:
    """No file may be written beyond so many bytes."""
    pid = aggregator.process.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)


def _empty_log(folder: Path) -> None:
    """The next transaction writes from the beginning of the log on, into new pages."""
    with closing(sqlite3.connect(folder / "aggregator.sqlite")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _check_in(device: Device) -> TrainOrder | Wait | int:
    """The answer, or the status of a refusal."""
    answer = device.request("POST", "/v1/checkin", codec.encode(CheckIn(TASK, device.name)))
    if answer.status != 200:
        return answer.status
    return codec.decode((TrainOrder, Wait), answer.body, max_bytes=MAX_BYTES)


def _until_open(device: Device, ended: int) -> None:
    """Round `ended` is on the disk, and the next one takes devices."""
    while True:
        newest = json.loads(device.request("GET", "/v1/status").body)["rounds"][-1]
        if newest["number"] > ended and newest["state"] in ("open", "training"):
            return
        time.sleep(0.02)


def _endure(folder: Path, points: int, way: Any, *, ack_anyway: bool) -> dict[str, Any]:
    init(
        folder,
        *("--cohort", "1", "--minimum", "1", "--over-selection", "1", "--deadline-s", "3600"),
        *("--keep-updates", "1000", "--keep-models", "1", "--tokens", "0"),
    )
    acked: dict[int, int] = {}
    answers: Counter[str] = Counter()
    stuck = 0
    module = "tests.benchmarks.faults.blind" if ack_anyway else "fedlearn_aggregator"
    with serve(folder, "--no-mdns", module=module) as aggregator:
        device = aggregator.device("board")
        device.timeout_s = 60.0
        for point in range(1, points + 1):
            # Two turns: with the seat on the disk before it refuses, and not.
            room = (point - 1) // 2 * _LOG_BYTES // max(points // 2, 1)
            _until_open(device, max(acked, default=0))
            _empty_log(folder)
            first = device.order() if point % 2 else None
            body = device.train(first) if first else b""
            with way(aggregator, folder, room):
                # Every other time the disk is full from before the seat is given.
                order = first or _check_in(device)
                if isinstance(order, TrainOrder):
                    body = body or device.train(order)
                    status = device.send(order.round, body).status
                else:
                    status = order if isinstance(order, int) else 0
                answers[str(status)] += 1
                if status in (200, 201) and isinstance(order, TrainOrder):
                    acked[order.round] = len(body)
            # Now there is room. What was refused is sent again.
            again = order if isinstance(order, TrainOrder) else device.order()
            body = body or device.train(again)
            status = device.send(again.round, body).status
            if status in (200, 201):
                acked[again.round] = len(body)
            else:
                stuck += 1
        aggregator.kill()
    with closing(sqlite3.connect(folder / "aggregator.sqlite")) as db:
        intact = db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        kept = dict(db.execute("SELECT round, body_bytes FROM updates").fetchall())
    refused = sum(count for status, count in answers.items() if status.startswith("5"))
    fine = sum(answers[status] for status in ("200", "201"))
    return {
        "points": points,
        "refused": refused,
        "answers": dict(answers),
        "other_answers": points - refused - fine,
        "lost": sum(kept.get(number) != size for number, size in acked.items()),
        "acknowledged": len(acked),
        "stuck": stuck,
        "intact": intact,
    }


def main() -> None:
    """In the namespace: print the figures as JSON."""
    folder, points = Path(sys.argv[1]), int(sys.argv[2])
    ack_anyway = "--ack-anyway" in sys.argv
    small = folder / "small"
    small.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(small)], check=True
    )
    figures = {
        "no_space": _endure(small, points // 2, _full_tmpfs, ack_anyway=ack_anyway),
        "io_error": _endure(folder / "limited", points // 2, _limited_files, ack_anyway=ack_anyway),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
