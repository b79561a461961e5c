# SPDX-License-Identifier: Apache-2.0
"""A device's life as a member of its fleet: enrolled, renewed, blocked, removed, enrolled again.

Agent and aggregator are real processes; a person's commands run beside them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedlearn.agent.identity import Identity
from fedlearn_aggregator.identity.authority import parse_request
from fedlearn_aggregator.identity.folder import Folder
from tests.aggregator import process
from tests.client.agent.announced import unique_task
from tests.client.agent.whole import LOOPBACK, Agent, make_store

DAY_S = 86400


@pytest.fixture
def task() -> str:
    return unique_task()


@pytest.fixture
def store(tmp_path: Path, task: str) -> Path:
    """Rounds that never end: there is always something to be let in for."""
    return make_store(tmp_path / "aggregator", task, rounds=0, interval_s=0.2)


@pytest.fixture
def agent(tmp_path: Path, task: str, store: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "device", task, store)
    yield agent
    agent.close()


@pytest.fixture
def aggregator(store: Path) -> Iterator[process.Aggregator]:
    with process.serve(store, *LOOPBACK, trust="") as aggregator:
        yield aggregator


def devices(agent: Agent, *words: str) -> str:
    done = process.run("devices", "--data-dir", str(agent.store), *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def delivers(agent: Agent) -> None:
    """Wait for one more update."""
    before = agent.log.count("delivered")
    agent.until(lambda: agent.log.count("delivered") > before)


def age(agent: Agent, days: float) -> None:
    """Give the device a certificate for its key that was issued so long ago."""
    identity = Identity(agent.path / "state", "board")
    request = parse_request(identity.request(), "board")
    with closing(Folder.open(agent.store / "identity")) as folder:
        pem, _ = folder.authority.certify_device(request, "board", time.time() - days * DAY_S)
    agent.certificate.write_bytes(pem)


@pytest.mark.usefixtures("aggregator")
def test_a_blocked_device_waits_and_a_removed_one_enrols_again(agent: Agent) -> None:
    agent.start()
    delivers(agent)
    first = agent.certificate.read_bytes()
    key = (agent.path / "state/device.key").read_bytes()
    assert (agent.path / "state/device.key").stat().st_mode & 0o777 == 0o600

    devices(agent, "block", "board")
    agent.until(lambda: "this device is blocked" in agent.log)
    blocked_at = agent.log.count("delivered")
    time.sleep(1)
    assert agent.log.count("delivered") == blocked_at
    assert json.loads(devices(agent, "--json"))[0]["blocked"]
    devices(agent, "unblock", "board")
    delivers(agent)
    assert agent.certificate.read_bytes() == first  # blocking takes no certificate away

    devices(agent, "remove", "board")
    agent.until(lambda: "the token was used already" in agent.log)
    assert devices(agent, "--json") == "[]\n"
    agent.take_token()
    delivers(agent)
    assert agent.certificate.read_bytes() != first
    assert (agent.path / "state/device.key").read_bytes() == key
    devices(agent, "name", "board", "hall 3")
    assert re.search(r"^board +enrolled .* hall 3$", devices(agent), re.MULTILINE)


@pytest.mark.usefixtures("aggregator")
def test_a_certificate_is_renewed_in_time(agent: Agent) -> None:
    agent.start()
    delivers(agent)
    agent.kill()
    age(agent, days=200)  # of 365: not yet
    agent.start()
    delivers(agent)
    assert "the certificate is renewed" not in agent.log  # the control
    agent.kill()
    age(agent, days=300)
    old = agent.certificate.read_bytes()
    agent.start()
    delivers(agent)
    assert agent.log.count("the certificate is renewed") == 1
    assert agent.certificate.read_bytes() != old
    left_s = json.loads(devices(agent, "--json"))[0]["expires"] - time.time()
    assert 364 * DAY_S < left_s <= 365 * DAY_S


@pytest.mark.usefixtures("aggregator")
def test_an_expired_certificate_needs_a_new_token(agent: Agent) -> None:
    agent.start()
    delivers(agent)
    agent.kill()
    age(agent, days=400)
    before = agent.log.count("delivered")
    (agent.path / "token").write_text("never-made-by-this-aggregator")
    agent.start()
    agent.until(lambda: "the token is not known here" in agent.log)
    assert "this certificate has expired" in agent.log
    assert agent.log.count("delivered") == before
    # Its key is known under its name: any good token for it will do.
    agent.take_token()
    delivers(agent)


@pytest.mark.usefixtures("aggregator")
def test_another_device_cannot_take_its_name(agent: Agent, tmp_path: Path, task: str) -> None:
    agent.start()
    delivers(agent)
    other = Agent(tmp_path / "other", task, agent.store)
    try:
        other.start()
        other.until(lambda: "another device has this name" in other.log)
        assert not other.certificate.exists()
    finally:
        other.close()
    delivers(agent)
