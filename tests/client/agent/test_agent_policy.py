# SPDX-License-Identifier: Apache-2.0
"""An agent process on a board whose sensors the test writes, and whose memory runs out."""

from __future__ import annotations

import json
import time

import pytest

from fedlearn.agent.allowance import LEAST_KIB
from fedlearn.cli import main
from fedlearn.wire import codec
from fedlearn.wire.messages import CheckIn, Wait

from .board import Board
from .fake_worker import HUNGRY_KIB
from .harness import Aggregator, Device, device, held, order, puts
from .scripted import Server, serving

__all__ = ["device"]  # the fixture

POLICY = "[policy]\nmax_temperature_c = 70\n"


@pytest.fixture
def board(device: Device) -> Board:
    board = Board(device.path / "root")
    device.root = board.root
    board.temperature(50)
    return board


def failures(server: Server) -> list[tuple[int, str]]:
    posts = [each for each in server.requests if each.method == "POST"]
    messages = [codec.decode(CheckIn, each.body, max_bytes=1000) for each in posts]
    return [(each.failure.round, each.failure.reason) for each in messages if each.failure]


def waits_for_the_policy(device: Device) -> bool:
    status = device.status()
    return status["state"] == "waiting" and status["reason"] == "71 C, limit 70 C"


def test_a_device_that_may_not_train_asks_for_no_work(
    device: Device, board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    board.temperature(71)
    aggregator = Aggregator(order(3))
    with serving(aggregator) as server:
        device.start(port=server.port, more=POLICY)
        device.wait_for_state("waiting")
        device.wait_for(lambda: waits_for_the_policy(device))
        assert main(["status", "--config", str(device.path / "device.toml")]) == 0
        output = capsys.readouterr().out
        assert "state       waiting: 71 C, limit 70 C\n" in output
        assert "policy      71 C, limit 70 C: forbids\n" in output
        assert main(["status", "--json", "--config", str(device.path / "device.toml")]) == 0
        (check,) = json.loads(capsys.readouterr().out)["policy"]
        assert check == {
            "name": "temperature",
            "text": "71 C, limit 70 C",
            "allows": False,
            "value": 71.0,
            "limit": 70,
        }
        board.temperature(67)  # below the limit, but not by the margin
        time.sleep(0.5)
        assert device.status()["reason"] == "67 C, limit 70 C, allowed again at 65 C"
        assert server.requests == []
        board.temperature(64)
        server.wait_for(puts)  # the control: this was all that it waited for
        held(server, 2)
        assert device.status()["policy"][0]["allows"] is True
        device.stop()
        aggregator.release.set()
    assert failures(server) == []
    assert device.log.count("the policy forbids training: 71 C, limit 70 C") == 1


def test_a_training_that_runs_is_stopped_and_its_seat_given_back(
    device: Device, board: Board
) -> None:
    aggregator = Aggregator(order(3))
    with serving(aggregator) as server:
        device.start(port=server.port, mode="hang", more=POLICY)
        device.wait_for_state("training")
        device.wait_for(lambda: len(device.workers) == 1)
        time.sleep(0.5)
        assert device.status()["state"] == "training"  # the control: while it is cool
        board.temperature(71)
        start = time.monotonic()
        device.wait_for(lambda: device.workers == [])
        assert time.monotonic() - start < 5
        device.wait_for(lambda: waits_for_the_policy(device))
        assert failures(server) == [(3, "not now, by its policy: 71 C, limit 70 C")]
        assert device.status()["last_error"] == ""
        time.sleep(0.5)
        asked = len(server.requests)
        assert waits_for_the_policy(device)
        board.temperature(50)
        server.wait_for(lambda each: each.path == "/v1/checkin", 3)
        assert len(server.requests) > asked
        device.stop()
        aggregator.release.set()
    assert "next try in" not in device.log  # no failure, and no back-off


def test_an_order_that_comes_too_late_is_given_back_untouched(device: Device, board: Board) -> None:
    """The policy turns while the aggregator holds the check-in."""
    aggregator = Aggregator(order(3))
    answers = aggregator.__call__

    def heat(request: object) -> bytes | None:
        board.temperature(71)
        return answers(request)  # type: ignore[arg-type]

    with serving(heat) as server:
        device.start(port=server.port, more=POLICY)
        device.wait_for(lambda: len(failures(server)) == 1)
        device.wait_for(lambda: waits_for_the_policy(device))
        device.stop()
        aggregator.release.set()
    assert [each.method for each in server.requests] == ["POST", "POST"]
    assert failures(server) == [(3, "not now, by its policy: 71 C, limit 70 C")]


def test_an_unsent_update_goes_out_whatever_the_policy_says(device: Device, board: Board) -> None:
    aggregator = Aggregator(order(3))

    def cut_the_power() -> None:
        device.processes[0].kill()

    aggregator.before_update = cut_the_power
    with serving(aggregator) as server:
        device.start(port=server.port, more=POLICY)
        server.wait_for(puts)
        device.processes[0].wait(5)
        aggregator.before_update = lambda: None
        board.temperature(71)
        device.start(port=server.port, more=POLICY)
        server.wait_for(puts, 2)
        device.wait_for(lambda: waits_for_the_policy(device))
        device.stop()
        aggregator.release.set()


def test_the_policy_also_turns_while_there_is_no_work(device: Device, board: Board) -> None:
    aggregator = Aggregator(Wait(0.5, "no seat"))
    with serving(aggregator) as server:
        device.start(port=server.port, more=POLICY)
        device.wait_for_state("waiting")
        assert device.status()["reason"] == "no seat"
        board.temperature(71)
        device.wait_for(lambda: waits_for_the_policy(device))
        assert len(server.requests) == 1
        device.stop()
        aggregator.release.set()


def test_without_sensors_it_trains_and_says_so_once(device: Device) -> None:
    device.root = device.path / "nothing"
    aggregator = Aggregator(order(3), order(4))
    with serving(aggregator) as server:
        device.start(port=server.port, more=POLICY)
        held(server, 3)
        device.stop()
        aggregator.release.set()
    assert device.log.count("temperature not known") == 1


def test_a_training_killed_for_its_memory_may_need_less_the_next_time(
    device: Device, board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    aggregator = Aggregator(order(3), order(4), order(5))
    with serving(aggregator) as server:
        device.start(port=server.port, mode="hungry")
        # No limit: killed; half of what it took: killed; a quarter: trained.
        server.wait_for(puts)
        held(server, 6)
        first, second = failures(server)
        assert "killed, probably because memory ran out" in first[1]
        assert (first[0], second[0]) == (3, 4)
        allowed = device.status()["memory_allowance_kib"]
        assert HUNGRY_KIB / 5 < allowed < HUNGRY_KIB / 3
        assert main(["status", "--config", str(device.path / "device.toml")]) == 0
        assert f"may need {allowed:,} KiB" in capsys.readouterr().out
        device.stop()
        remembered = json.loads((device.path / "state/agent.json").read_text())
        assert remembered["allowance"]["kib"] == allowed

        # A new agent remembers: its first training is not killed.
        aggregator.replies.append(order(6))
        device.start(port=server.port, mode="hungry")
        server.wait_for(puts, 2)
        assert len(failures(server)) == 2
        device.stop()

        # The control, and the reset: with another configuration it begins anew, and is killed.
        aggregator.replies.append(order(7))
        device.start(port=server.port, mode="hungry", more="[training]\nthreads = 2\n")
        device.wait_for(lambda: len(failures(server)) == 3)
        device.wait_for(lambda: device.status()["memory_allowance_kib"] > allowed)
        device.stop()
        aggregator.release.set()
    assert allowed > LEAST_KIB


def test_another_killer_changes_no_allowance(device: Device, board: Board) -> None:
    """The control group counts what the kernel kills for memory: nothing."""
    board.oom_kills(2)
    aggregator = Aggregator(order(3))
    with serving(aggregator) as server:
        device.start(port=server.port, mode="hungry")
        device.wait_for(lambda: len(failures(server)) == 1)
        assert "not by the kernel for its memory" in failures(server)[0][1]
        assert device.status()["memory_allowance_kib"] == 0
        device.stop()
        aggregator.release.set()
