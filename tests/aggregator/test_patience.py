# SPDX-License-Identifier: Apache-2.0
"""Slow peers are ended in time, slow but honest ones are not, and good ones notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path

import pytest

from fedlearn.wire import codec
from fedlearn.wire.messages import CheckIn
from fedlearn_aggregator import patience
from fedlearn_aggregator.patience import GRACE_S, HEAD_S, KEEP_ALIVE_S, LEAST_RATE, Guard, Patience
from fedlearn_aggregator.rounds import Policy
from tests.aggregator.devices import TASK
from tests.aggregator.service import Service, address, blocking, head, make_task, service

CHECK_IN = codec.encode(CheckIn(TASK, "slow"))


class Transport(asyncio.Transport):
    """A connection without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


class Inner(asyncio.Protocol):
    """In the place of aiohttp's."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(patience, "_now", lambda: now[0])
    return now


def connect(waiting: Patience) -> tuple[Guard, Transport]:
    guard, transport = waiting.guard(Inner()), Transport()
    guard.connection_made(transport)
    return guard, transport


def survives(waiting: Patience, transport: Transport, clock: list[float], seconds: float) -> bool:
    """Let so many seconds pass."""
    for _ in range(int(seconds)):
        clock[0] += 1
        waiting.look(clock[0])
    return not transport.aborted


def test_a_head_has_some_seconds(clock: list[float]) -> None:
    waiting = Patience()
    guard, transport = connect(waiting)
    assert survives(waiting, transport, clock, HEAD_S)
    guard.data_received(b"G")  # one letter more is no progress
    assert not survives(waiting, transport, clock, 1)
    assert waiting.cut == 1


def test_whoever_is_answered_may_rest_and_then_has_some_seconds_again(clock: list[float]) -> None:
    waiting = Patience()
    guard, transport = connect(waiting)
    waiting.handling(transport)
    assert survives(waiting, transport, clock, 10_000)  # a held check-in waits for us
    waiting.handled(transport)
    assert survives(waiting, transport, clock, KEEP_ALIVE_S)
    guard.data_received(b"G")
    assert survives(waiting, transport, clock, HEAD_S)
    assert not survives(waiting, transport, clock, 1)


def test_an_idle_connection_ends(clock: list[float]) -> None:
    waiting = Patience()
    _, transport = connect(waiting)
    waiting.handling(transport)
    waiting.handled(transport)
    assert not survives(waiting, transport, clock, KEEP_ALIVE_S + 1)


@pytest.mark.parametrize(("rate", "lives"), [(LEAST_RATE * 2, True), (LEAST_RATE / 2, False)])
def test_an_answer_is_taken_at_a_modems_speed(clock: list[float], rate: float, lives: bool) -> None:
    waiting = Patience()
    _, transport = connect(waiting)
    waiting.handling(transport)
    waiting.handled(transport)
    transport.unsent = 400_000
    for _ in range(int(3 * GRACE_S)):
        transport.unsent -= int(rate)
        survives(waiting, transport, clock, 1)
    assert transport.aborted is not lives
    transport.unsent = 0
    assert not lives or survives(waiting, transport, clock, KEEP_ALIVE_S)


def test_what_is_over_is_forgotten(clock: list[float]) -> None:
    waiting = Patience()
    guard, transport = connect(waiting)
    assert waiting.connections == 1
    guard.connection_lost(None)
    assert waiting.connections == 0
    assert survives(waiting, transport, clock, 100)
    waiting.handling(transport)  # its handler ends later
    waiting.handled(None)


# Over real connections, with less patience.


def slow_peers(running: Service, count: int) -> list[socket.socket]:
    """Connected, and each at another point of a request."""
    starts = [
        b"",
        b"POST /v1/che",
        head("POST", "/v1/checkin", 400),
        head("POST", "/v1/checkin", None) + b"1\r\n\xa4\r\n",
    ]
    peers = []
    for number in range(count):
        peer = socket.create_connection(address(running), timeout=10)
        peer.sendall(starts[number % len(starts)])
        peers.append(peer)
    return peers


def trickle(peers: list[socket.socket], seconds: float) -> set[int]:
    """Send a byte now and then; return which peers were cut off."""
    cut: set[int] = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until and len(cut) < len(peers):
        for at, peer in enumerate(peers):
            if at in cut:
                continue
            try:
                if at % 4:
                    peer.send(b"a")
                peer.setblocking(False)
                while peer.recv(4096):
                    pass
                cut.add(at)
            except BlockingIOError:
                pass
            except OSError:
                cut.add(at)
        time.sleep(0.05)
    return cut


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
def test_slow_peers_are_cut_and_a_good_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    monkeypatch.setattr(patience, "HEAD_S", 0.5 if guarded else 1000.0)
    monkeypatch.setattr(patience, "LOOK_S", 0.1)

    async def scenario() -> None:
        grace_s = 0.5 if guarded else 1000.0
        task = make_task(Policy(1, 1))
        async with service(tmp_path, task, hold_s=3.0, grace_s=grace_s) as running:
            peers = await blocking(slow_peers, running, 40)
            good = running.device("good")
            waiting = asyncio.ensure_future(blocking(trickle, peers, 3.0))
            body = await blocking(good.train, await blocking(good.order))
            assert (await blocking(good.send, 1, body)).status == 201
            cut = await waiting
            assert (cut == set(range(40))) is guarded
            for peer in peers:
                peer.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_burst_buys_no_silence(tmp_path: Path) -> None:
    """Nor is a body of a modem's speed cut off, however long it takes."""
    length = 60_000

    def send(running: Service, burst: int, rate: int) -> tuple[int, float]:
        """The status, and how long it took; after the burst, so many bytes a second."""
        with socket.create_connection(address(running), timeout=30) as peer:
            began = time.monotonic()
            peer.sendall(head("PUT", "/v1/rounds/1/updates/slow", length) + bytes(burst))
            peer.setblocking(False)
            sent = burst
            while True:
                with contextlib.suppress(BlockingIOError):
                    return int(peer.recv(4096)[9:12]), time.monotonic() - began
                if rate and sent < length:
                    sent += peer.send(bytes(min(rate // 20, length - sent)))
                time.sleep(0.05)

    async def scenario() -> None:
        # A body of the whole network may be so long.
        async with service(tmp_path, make_task(Policy(1, 1), "all"), grace_s=0.5) as running:
            status, seconds = await blocking(send, running, 50_000, 0)
            assert status == 408
            assert seconds < 5
            status, seconds = await blocking(send, running, 0, 20_000)
            assert status != 408  # it came whole, and is no update
            assert seconds > 2

    asyncio.run(asyncio.wait_for(scenario(), 60))
