# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Address and socket of a service manager."""
    name = f"@fedlearn-{uuid.uuid4().hex}" if request.param == "abstract" else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as received:
        received.bind(name.replace("@", "\0", 1) if name[0] == "@" else name)
        received.settimeout(5)
        yield name, received


def test_all_that_is_told(manager: tuple[str, socket.socket]) -> None:
    name, received = manager
    notifier = Notifier(name)
    notifier.ready()
    notifier.status("waiting: 71 C,\nREADY=1 limit \N{DEGREE SIGN}")
    notifier.status("waiting: 71 C,\nREADY=1 limit \N{DEGREE SIGN}")  # the same is not sent again
    notifier.alive()
    notifier.stopping()
    assert [received.recv(1000).decode() for _ in range(4)] == [
        "READY=1",
        "STATUS=waiting: 71 C, READY=1 limit \N{DEGREE SIGN}",
        "WATCHDOG=1",
        "STOPPING=1",
    ]
    received.setblocking(False)
    with pytest.raises(BlockingIOError):
        received.recv(1000)


def test_the_environment_is_taken_and_left_to_no_child(manager: tuple[str, socket.socket]) -> None:
    name, received = manager
    environment = {
        "NOTIFY_SOCKET": name,
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/root",
    }
    notifier = Notifier.take(environment)
    assert environment == {"HOME": "/root"}
    assert notifier.watchdog_s == 15.0
    notifier.ready()
    assert received.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("microseconds", "pid", "expected"),
    [
        ("20", "", 1e-5),
        ("0", "", None),
        ("-5", "", None),
        ("soon", "", None),
        ("", "", None),
        ("30000000", "1", None),  # of another process
    ],
)
def test_the_watchdogs_interval(microseconds: str, pid: str, expected: float | None) -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid}
    assert Notifier.take(environment).watchdog_s == expected


def test_without_a_socket_nothing_happens() -> None:
    notifier = Notifier.take({"WATCHDOG_USEC": "30000000"})
    assert notifier.watchdog_s is None
    notifier.ready()
    notifier.stopping()


@pytest.mark.parametrize("address", ["/no/such/socket", "vsock:2:1", "relative", "@" + "x" * 200])
def test_a_manager_that_cannot_be_reached_is_no_matter(address: str) -> None:
    notifier = Notifier(address)
    notifier.ready()
    notifier.alive()


def test_a_manager_that_does_not_read_holds_nobody(manager: tuple[str, socket.socket]) -> None:
    name, _ = manager
    notifier = Notifier(name)
    assert notifier._socket is not None
    notifier._socket.settimeout(0.01)
    for _ in range(2000):  # more than the queue of a socket takes
        notifier.alive()
