# SPDX-License-Identifier: Apache-2.0
"""Nothing is scripted here: a real agent, worker and aggregator, and real mDNS on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn_demo.digits import MODEL_PATH, load_train
from tests.aggregator import process
from tests.client.agent.announced import unique_task

LOOPBACK = ("--interface", "127.0.0.1")


class Agent:
    """`fedlearn agent` on a few digits, with no address of an aggregator."""

    def __init__(self, path: Path, task: str) -> None:
        self.path = path
        x, y = load_train()
        np.savez(path / "digits.npz", x=x[:64], y=y[:64])
        (path / "device.toml").write_text(
            f'[device]\nname = "board"\nstate_dir = "state"\nruntime_dir = "run"\n'
            f'[aggregator]\ntask = "{task}"\ninsecure = true\ninterfaces = ["127.0.0.1"]\n'
            f'[data]\npath = "digits.npz"\n'
        )
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def pending(self) -> Path:
        return self.path / "state/pending.cbor"

    @property
    def log(self) -> str:
        return (self.path / "log").read_text()

    def start(self) -> None:
        command = [sys.executable, "-m", "fedlearn", "agent", "--config", "device.toml"]
        with (self.path / "log").open("ab") as log:
            self.processes.append(subprocess.Popen(command, cwd=self.path, stderr=log))

    def kill(self) -> None:
        self.processes[-1].kill()
        self.processes[-1].wait(10)

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


@pytest.fixture
def task() -> str:
    return unique_task()


@pytest.fixture
def agent(tmp_path: Path, task: str) -> Iterator[Agent]:
    (tmp_path / "device").mkdir()
    agent = Agent(tmp_path / "device", task)
    yield agent
    for each in agent.processes:
        each.kill()
        each.wait(10)


@pytest.fixture
def store(tmp_path: Path, task: str) -> Path:
    path = tmp_path / "aggregator"
    done = process.run(
        "init",
        *("--data-dir", str(path), "--task", task, "--model", str(MODEL_PATH), "--tail", "last"),
        *("--cohort", "1", "--minimum", "1", "--over-selection", "1", "--rounds", "2"),
        # Long enough, some tenths of a second, to do something in the meantime.
        *("--epochs", "300"),
    )
    assert done.returncode == 0, done.stderr
    return path


def rounds(aggregator: process.Aggregator) -> list[tuple[str, int]]:
    with urllib.request.urlopen(f"{aggregator.url}/v1/status", timeout=10) as reply:
        status: dict[str, Any] = json.loads(reply.read())
    return [(each["state"], each["updates"]) for each in status["rounds"]]


DONE = [("closed", 1), ("closed", 1)]


def test_two_rounds(agent: Agent, store: Path) -> None:
    with process.serve(store, *LOOPBACK) as aggregator:
        agent.start()
        agent.until(lambda: rounds(aggregator) == DONE)
    assert agent.log.count("trained on 64 samples") == 2


def test_an_update_counts_once_whoever_dies_between_training_and_upload(
    agent: Agent, store: Path
) -> None:
    """Aggregator and agent are both killed, and come back at another address."""
    with process.serve(store, *LOOPBACK) as aggregator:
        agent.start()
        agent.until(lambda: agent.is_training(2))
        aggregator.kill()
    agent.until(agent.pending.exists)
    agent.kill()
    update = agent.pending.read_bytes()
    assert agent.log.count("update of") == 1  # the first round's: this one was not delivered
    with process.serve(store, *LOOPBACK) as aggregator:
        assert rounds(aggregator) == [("closed", 1), ("training", 0)]  # the control
        agent.start()
        agent.until(lambda: rounds(aggregator) == DONE)
        agent.until(lambda: not agent.pending.exists())
        done = process.run("rounds", "--data-dir", str(store), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[1]["bytes_up"] == [len(update)]
    # The second agent delivered what the first one had trained.
    assert agent.log.count("trained on 64 samples") == 2
    assert agent.log.count("update of") == 2
