# SPDX-License-Identifier: Apache-2.0
"""Nothing is scripted here: a real agent, worker and aggregator, real mDNS and mutual TLS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aggregator import process
from tests.client.agent.announced import unique_task
from tests.client.agent.whole import LOOPBACK, Agent, make_store, rounds


@pytest.fixture
def task() -> str:
    return unique_task()


@pytest.fixture
def store(tmp_path: Path, task: str) -> Path:
    return make_store(tmp_path / "aggregator", task, rounds=2)


@pytest.fixture
def agent(tmp_path: Path, task: str, store: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "device", task, store)
    yield agent
    agent.close()


DONE = [("closed", 1), ("closed", 1)]


def test_two_rounds(agent: Agent, store: Path) -> None:
    with process.serve(store, *LOOPBACK, trust="") as aggregator:
        agent.start()
        agent.until(lambda: rounds(aggregator, store) == DONE)
    assert agent.log.count("trained on 64 samples") == 2


def test_an_update_counts_once_whoever_dies_between_training_and_upload(
    agent: Agent, store: Path
) -> None:
    """Aggregator and agent are both killed, and come back at another address."""
    with process.serve(store, *LOOPBACK, trust="") as aggregator:
        agent.start()
        agent.until(lambda: agent.is_training(2))
        aggregator.kill()
    agent.until(agent.pending.exists)
    agent.kill()
    update = agent.pending.read_bytes()
    assert agent.log.count("update of") == 1  # the first round's: this one was not delivered
    with process.serve(store, *LOOPBACK, trust="") as aggregator:
        assert rounds(aggregator, store) == [("closed", 1), ("training", 0)]  # the control
        agent.start()
        agent.until(lambda: rounds(aggregator, store) == DONE)
        agent.until(lambda: not agent.pending.exists())
        done = process.run("rounds", "--data-dir", str(store), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[1]["bytes_up"] == [len(update)]
    # The second agent delivered what the first one had trained.
    assert agent.log.count("trained on 64 samples") == 2
    assert agent.log.count("update of") == 2
