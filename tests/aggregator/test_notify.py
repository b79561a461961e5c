# SPDX-License-Identifier: Apache-2.0
"""The `serve` process under a service manager that the test plays."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aggregator import process


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as received:
        received.bind(str(tmp_path / "notify"))
        received.settimeout(8)
        yield received


def received(manager: socket.socket, seconds: float) -> list[str]:
    """Whatever comes in the next seconds."""
    lines, until = [], time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        manager.settimeout(left_s)
        try:
            lines.append(manager.recv(4096).decode())
        except TimeoutError:
            break
    return lines


def test_it_is_ready_when_it_listens_and_alive_while_its_loop_goes_round(
    tmp_path: Path, manager: socket.socket
) -> None:
    process.init(tmp_path / "data")
    with process.serve(tmp_path / "data", "--no-mdns") as aggregator:
        assert manager.recv(100) == b"READY=1"
        aggregator.device("board")  # it listens
        lines = received(manager, 2.0)
        assert lines.count("WATCHDOG=1") >= 8
        assert [line for line in lines if line != "WATCHDOG=1"] == [
            "STATUS=round 1 is open: 0 updates"
        ]
        # A loop that does not go round is not alive.
        os.kill(aggregator.process.pid, signal.SIGSTOP)
        received(manager, 0.3)
        assert received(manager, 1.0) == []
        os.kill(aggregator.process.pid, signal.SIGCONT)
        assert received(manager, 1.0).count("WATCHDOG=1") >= 4
        aggregator.stop()
    assert received(manager, 1.0)[-1] == "STOPPING=1"


def test_it_is_not_ready_without_a_store(tmp_path: Path, manager: socket.socket) -> None:
    done = process.run("serve", "--data-dir", str(tmp_path / "none"), "--insecure", "--no-mdns")
    assert done.returncode != 0
    assert received(manager, 0.5) == []
