# SPDX-License-Identifier: Apache-2.0
"""An agent process under a service manager that the test plays."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .board import Board
from .harness import Aggregator, Device, device, held, order
from .scripted import serving

__all__ = ["device"]  # the fixture

BEAT_S = 0.1


class Manager:
    """Receives what the service tells; beats of the watchdog are counted apart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self.beats = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        threading.Thread(target=self._receive, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": str(round(2e6 * BEAT_S))}

    def beats_within(self, seconds: float) -> int:
        before = self.beats
        time.sleep(seconds)
        return self.beats - before

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while text := self._socket.recv(4096).decode():
                if text == "WATCHDOG=1":
                    self.beats += 1
                else:
                    self.lines.append(text)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 8
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_life_of_a_service(device: Device, manager: Manager) -> None:
    aggregator = Aggregator(order(3))
    with serving(aggregator) as server:
        device.start(port=server.port, environment=manager.environment)
        held(server, 2)
        until(lambda: "STATUS=checking in" in manager.lines[-1])
        # A long poll is under way: the loop waits, and lives.
        assert manager.beats_within(2.0) >= 8
        assert device.stop() == 0
        aggregator.release.set()
    ready = manager.lines.index("READY=1")
    assert manager.lines[:ready] == ["STATUS=discovering"]
    assert "STATUS=training" in manager.lines
    until(lambda: manager.lines[-1] == "STOPPING=1")


def test_it_is_ready_without_an_aggregator(device: Device, manager: Manager) -> None:
    device.start(task="nobody-has-this-task", environment=manager.environment)
    until(lambda: "READY=1" in manager.lines)
    assert manager.beats_within(2.0) >= 8  # a search, too, is a wait
    device.stop()


def test_it_is_not_ready_when_another_agent_has_the_directory(
    device: Device, manager: Manager
) -> None:
    aggregator = Aggregator()
    with serving(aggregator) as server:
        device.start(port=server.port)
        held(server, 1)
        device.start(port=server.port, environment=manager.environment)
        assert device.processes[-1].wait(10) != 0
        aggregator.release.set()
    assert "READY=1" not in manager.lines


def test_a_long_training_does_not_starve_the_watchdog_and_inherits_nothing(
    device: Device, manager: Manager
) -> None:
    aggregator = Aggregator(order(3))
    with serving(aggregator) as server:
        device.start(port=server.port, mode="hang", environment=manager.environment)
        device.wait_for_state("training")
        device.wait_for(lambda: len(device.workers) == 1)
        assert manager.beats_within(2.0) >= 8
        names = environment_of(device.workers[0])
        assert "OPENBLAS_NUM_THREADS" in names  # the control: this is its environment
        assert names & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} == set()
        assert "NOTIFY_SOCKET" in environment_of(device.processes[-1].pid)  # as it was started
        device.stop()
        aggregator.release.set()


def environment_of(pid: int) -> set[str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {entry.partition(b"=")[0].decode() for entry in entries if entry}


def test_a_loop_that_hangs_is_not_alive(device: Device, manager: Manager) -> None:
    """A driver that never answers: the read of its file blocks, and the loop with it."""
    board = Board(device.path / "root")
    board.temperature(71)
    device.root = board.root
    with serving(Aggregator()) as server:
        more = "[policy]\nmax_temperature_c = 70\n"
        device.start(port=server.port, more=more, environment=manager.environment)
        until(lambda: "STATUS=waiting: 71 C, limit 70 C" in manager.lines)
        assert manager.beats_within(1.0) >= 4  # the control
        sensor = board.root / "sys/class/thermal/thermal_zone0/temp"
        pipe = sensor.with_name("pipe")
        os.mkfifo(pipe)
        pipe.replace(sensor)
        time.sleep(0.5)
        assert manager.beats_within(1.0) == 0
        assert device.processes[-1].poll() is None
        held_open = os.open(sensor, os.O_WRONLY)  # the driver answers, and the loop goes on
        board.temperature(71)
        os.close(held_open)
        assert manager.beats_within(1.0) >= 4
        device.stop()
