# SPDX-License-Identifier: Apache-2.0
"""The aggregator of a run: a process on the LAN, with TLS and announced by mDNS."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedlearn.errors import FedlearnError
from fedlearn_aggregator.report import TaskReport, read
from fedlearn_qemu import tools
from fedlearn_qemu.lan import Network

PORT = 8470
# More than one machine can emulate.
_DEVICES = 1000
_START_S = 30.0
_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained. A device that is emulated on a busy machine needs a long deadline."""

    name: str
    model: Path
    cohort: int
    rounds: int = 0  # 0: without an end
    minimum: int = 0  # 0: the cohort
    deadline_s: float = 600.0
    tail: str = "dense"
    epochs: int = 1
    batch_size: int = 16
    seed: int = 0
    interval_s: float = 0.0  # from one round's opening to the next, at least
    test_data: Path | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Options of `fedlearn-aggregator init`."""
        return (
            *("--task", self.name, "--model", str(self.model), "--tail", self.tail),
            *("--cohort", str(self.cohort), "--minimum", str(self.minimum or self.cohort)),
            *("--over-selection", "1", "--deadline-s", str(self.deadline_s)),
            *(
                "--round-interval-s",
                str(self.interval_s),
                "--rounds",
                str(self.rounds),
                "--epochs",
                str(self.epochs),
            ),
            *("--batch-size", str(self.batch_size), "--seed", str(self.seed)),
        )


class Aggregator:
    """A context manager: it serves from `__enter__` to `__exit__`; its store is in `folder`."""

    def __init__(self, task: Task, folder: Path, network: Network) -> None:
        self._task = task
        self._data = folder / "aggregator"
        self._log = folder / "aggregator.log"
        self._network = network
        self._process: subprocess.Popen[bytes] | None = None
        self._command("init", *task.options, "--server-name", network.address, "--tokens", "0")
        # One for all cards of the run: they are throw-away devices.
        token = self._command("tokens", "--uses", str(_DEVICES))
        self.token = folder / "token"
        self.token.write_text(token, "ascii")
        self.ca = self._data / "identity" / "ca.pem"

    def __enter__(self) -> Self:
        host = self._network.host
        words = [*("--host", host, "--port", str(PORT))]
        words += ["--interface", host] if self._network.multicast else ["--no-mdns"]
        if self._task.test_data is not None:
            words += ["--evaluate", str(self._task.test_data)]
        serving = self._data / "serve.json"
        serving.unlink(missing_ok=True)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._prefix(), *self._program("serve"), *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"PATH": tools.path()},
            )
        deadline = time.monotonic() + _START_S
        while not serving.exists():
            self.check()
            if time.monotonic() > deadline:
                raise FedlearnError("the aggregator does not start", hint=f"see {self._log}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def check(self) -> None:
        """Raise FedlearnError if it has ended."""
        if self._process is None or self._process.poll() is not None:
            words = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise FedlearnError(f"the aggregator ended: {''.join(words)}", hint=f"see {self._log}")

    def report(self) -> TaskReport:
        """The task and its rounds, from the store on disk."""
        return read(self._data / "aggregator.sqlite")

    def export(self, number: int, target: Path) -> None:
        """Take the model of a round out."""
        self._command("export", "--round", str(number), str(target))

    def _prefix(self) -> Sequence[str]:
        return (*self._network.prefix, "setpriv", "--pdeathsig", "KILL")

    def _program(self, command: str) -> list[str]:
        module = [sys.executable, "-m", "fedlearn_aggregator", command]
        return [*module, "--data-dir", str(self._data)]

    def _command(self, command: str, *words: str) -> str:
        return tools.call([*self._program(command), *words])
