# SPDX-License-Identifier: Apache-2.0
"""A collecting process, and a pseudo-terminal that stands for a microcontroller's port."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlearn.collect import report
from fedlearn.collect.grid import Grid
from fedlearn.collect.report import CollectStatus
from fedlearn.collect.windows import Window

PATIENCE_S = 20.0
GRID = Grid(("a", "b"), 4, (0.0, 0.0), (1.0, 1.0), 0.5, 0)


def window(number: int, label: int | None = None, grid: Grid = GRID) -> Window:
    """A window that differs from those of other numbers, a second long."""
    data = number.to_bytes(4, "little") * (grid.window_bytes // 4 + 1)
    return Window(data[: grid.window_bytes], label, 1000 * number, 1000 * number + 999)


class Port:
    """A port by name, with one end for the test; it can be pulled out and put back."""

    def __init__(self, name: Path) -> None:
        self.name = name
        self.end: int | None = None
        self.plug()

    def plug(self) -> None:
        self.end, other = pty.openpty()
        tty.setraw(other)
        os.set_blocking(self.end, False)
        self.name.symlink_to(os.ttyname(other))
        os.close(other)

    def unplug(self) -> None:
        if self.end is not None:
            os.close(self.end)
            self.name.unlink()
        self.end = None

    def send(self, data: bytes) -> None:
        """Send all of it; a port without a reader takes nothing for ever."""
        assert self.end is not None
        give_up = time.monotonic() + PATIENCE_S
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.end, view) :]
            except BlockingIOError:
                assert time.monotonic() < give_up
                time.sleep(0.002)


class Collecting:
    """A directory with a configuration and the process that collects by it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def ring(self) -> Path:
        return self.path / "state/ring"

    def configure(self, source: str, samples: str = "", more: str = "") -> Path:
        file = self.path / "device.toml"
        file.write_text(
            '[device]\nstate_dir = "state"\nruntime_dir = "run"\n'
            '[aggregator]\ntask = "pumps"\ninsecure = true\ninterfaces = ["127.0.0.1"]\n'
            f"[source]\n{source}\n"
            f'[samples]\nchannels = ["a", "b"]\nwindow = 4\nstep = 0.5\n{samples}\n'
            f"{more or '[ring]'}\n" + ("" if "sync_s" in more else "sync_s = 0.1\n")
        )
        return file

    def start(self, *, stdin: int | None = None) -> None:
        command = [sys.executable, "-m", "fedlearn", "collect", "--config", "device.toml"]
        with (self.path / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.path, stderr=log, stdin=stdin or subprocess.DEVNULL
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    @property
    def log(self) -> str:
        return (self.path / "log").read_text()

    @property
    def status(self) -> CollectStatus:
        return report.read(self.path / "run" / report.FILE) or CollectStatus()

    def until(self, condition: Callable[[CollectStatus], bool]) -> CollectStatus:
        give_up = time.monotonic() + PATIENCE_S
        while not condition(status := self.status):
            shown = json.dumps(repr(status))
            assert time.monotonic() < give_up, f"{shown}\n{self.log}"
            time.sleep(0.02)
        return status


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Collecting]:
    device = Collecting(tmp_path)
    yield device
    if device.process is not None:
        device.process.kill()
        device.process.wait()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    port = Port(tmp_path / "port")
    yield port
    port.unplug()
