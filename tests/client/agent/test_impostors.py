# SPDX-License-Identifier: Apache-2.0
"""On a LAN of impostors the agent tells nobody anything, and finds the one that is true."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.client.agent.impostors import TALKATIVE, run

FOUND_WITHIN_S = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("a LAN of its own needs unshare and ip: apt install util-linux iproute2")
    return tmp_path


@pytest.mark.slow
def test_fifty_impostors_learn_nothing(folder: Path) -> None:
    outcome = run(folder, 50)
    assert set(outcome.leaked.values()) == {0}
    assert outcome.connections >= 40  # almost all were asked; not those without TLS
    assert outcome.found_s is not None
    assert outcome.found_s < FOUND_WITHIN_S


@pytest.mark.slow
def test_control_an_agent_that_trusts_everybody_gives_itself_away(folder: Path) -> None:
    outcome = run(folder, 14, gullible=True)
    for kind in TALKATIVE:
        assert outcome.leaked[kind.value] > 0, kind
