# SPDX-License-Identifier: Apache-2.0
"""A real `fedlearn-aggregator serve` process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.aggregator.devices import MODEL_PATH, TASK, Device

COMMAND = [sys.executable, "-m", "fedlearn_aggregator"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def init(data_dir: Path, *arguments: str) -> None:
    options = ["--data-dir", str(data_dir), "--task", TASK, "--model", str(MODEL_PATH)]
    done = run("init", *options, "--tail", "last", *arguments)
    assert done.returncode == 0, done.stderr


@dataclass
class Aggregator:
    url: str
    process: subprocess.Popen[str]

    def device(self, name: str) -> Device:
        return Device(self.url, name)

    def kill(self) -> None:
        """As a power cut does: no handler runs."""
        self.process.kill()
        self.process.wait(10)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Ask it to end; returns the exit code and the log."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=10)
        return self.process.returncode, log


@contextmanager
def serve(
    data_dir: Path,
    *arguments: str,
    trust: str = "--insecure",
    module: str = "fedlearn_aggregator",
) -> Iterator[Aggregator]:
    """Serve on a free port until the end of the context, or of the process before that.

    `module` is another program in its place, for controls.
    """
    where = ["--data-dir", str(data_dir), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", module, "serve", *where, *trust.split(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on "), process.communicate(timeout=10)[1]
        told = json.loads((data_dir / "serve.json").read_text())
        assert (line.split()[2], process.pid) == (told["url"], told["pid"])
        yield Aggregator(told["url"], process)
    finally:
        process.kill()
        process.communicate(timeout=10)
