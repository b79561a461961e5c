# SPDX-License-Identifier: Apache-2.0
"""A real agent and a real aggregator, each a process; they find each other by mDNS on loopback."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedlearn_demo.digits import MODEL_PATH, load_train
from tests.aggregator import process

LOOPBACK = ("--interface", "127.0.0.1")


class Agent:
    """`fedlearn agent` on a few digits, which knows its CA and a token, and no address."""

    def __init__(self, path: Path, task: str, store: Path) -> None:
        path.mkdir()
        self.path = path
        self.store = store
        x, y = load_train()
        np.savez(path / "digits.npz", x=x[:64], y=y[:64])
        ca = store / "identity/ca.pem"
        (path / "device.toml").write_text(
            f'[device]\nname = "board"\nstate_dir = "state"\nruntime_dir = "run"\n'
            f'[aggregator]\ntask = "{task}"\nca = "{ca}"\ntoken = "token"\n'
            f'interfaces = ["127.0.0.1"]\n'
            f'[data]\npath = "digits.npz"\n'
        )
        self.processes: list[subprocess.Popen[bytes]] = []
        self.take_token()

    def take_token(self) -> None:
        """Be given another token."""
        done = process.run("tokens", "--data-dir", str(self.store))
        assert done.returncode == 0, done.stderr
        (self.path / "token").write_text(done.stdout)

    @property
    def certificate(self) -> Path:
        return self.path / "state/device.pem"

    @property
    def pending(self) -> Path:
        return self.path / "state/pending.cbor"

    @property
    def log(self) -> str:
        return (self.path / "log").read_text()

    def start(self, module: str = "fedlearn") -> None:
        config = str(self.path / "device.toml")
        command = [sys.executable, "-m", module, "agent", "--config", config]
        with (self.path / "log").open("ab") as log:
            self.processes.append(subprocess.Popen(command, stderr=log))

    def kill(self) -> None:
        self.processes[-1].kill()
        self.processes[-1].wait(10)

    def close(self) -> None:
        for each in self.processes:
            each.kill()
            each.wait(10)

    def is_training(self, number: int) -> bool:
        try:
            status = json.loads((self.path / "run/status.json").read_bytes())
        except FileNotFoundError:
            return False
        return (status["state"], status["round"]) == ("training", number)

    def until(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < give_up, self.log
            time.sleep(0.01)


def make_store(path: Path, task: str, *, rounds: int, interval_s: float = 0.0) -> Path:
    done = process.run(
        "init",
        *("--data-dir", str(path), "--task", task, "--model", str(MODEL_PATH), "--tail", "last"),
        *("--cohort", "1", "--minimum", "1", "--over-selection", "1", "--rounds", str(rounds)),
        # Long enough, some tenths of a second, to do something in the meantime.
        *("--epochs", "300", "--round-interval-s", str(interval_s), "--tokens", "0"),
    )
    assert done.returncode == 0, done.stderr
    return path


def rounds(aggregator: process.Aggregator, store: Path) -> list[tuple[str, int]]:
    context = ssl.create_default_context(cafile=store / "identity/ca.pem")
    page = f"{aggregator.url}/v1/status"
    with urllib.request.urlopen(page, timeout=10, context=context) as reply:
        status: dict[str, Any] = json.loads(reply.read())
    return [(each["state"], each["updates"]) for each in status["rounds"]]
