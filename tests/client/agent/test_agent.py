# SPDX-License-Identifier: Apache-2.0
"""The agent as a process, against an aggregator that does what the test says."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from fedlearn.wire import codec
from fedlearn.wire.messages import (
    CheckIn,
    Refusal,
    Update,
    Wait,
)

from .announced import announced, unique_task
from .harness import DIGESTS, MODELS, Aggregator, Device, device, held, order, puts
from .scripted import CBOR, Request, answer, message, serving

__all__ = ["device"]  # the fixture

# The long poll and the training that hangs last 60 s: what is far from that is at once, on a busy
# machine, too.
STOPS_WITHIN_S = 20.0


def test_rounds_from_end_to_end(device: Device) -> None:
    aggregator = Aggregator(order(3), Wait(0.05, "wait a moment"), order(4, model=1))
    with serving(aggregator) as server:
        device.start(port=server.port)
        held(server, 4)
        status = device.wait_for_state("checking_in")
        start = time.monotonic()
        assert device.stop() == 0
        assert time.monotonic() - start < STOPS_WITHIN_S
        aggregator.release.set()

        steps = [(each.method, each.path.partition("?")[0]) for each in server.requests]
        assert steps == [
            ("POST", "/v1/checkin"),
            ("GET", f"/v1/models/{DIGESTS[0].hex()}"),
            ("PUT", "/v1/rounds/3/updates/board"),
            ("POST", "/v1/checkin"),
            ("POST", "/v1/checkin"),
            ("GET", f"/v1/models/{DIGESTS[1].hex()}"),
            ("PUT", "/v1/rounds/4/updates/board"),
            ("POST", "/v1/checkin"),
        ]
        assert {each.connection for each in server.requests} == {1}
        assert server.requests[5].path.endswith(f"?from={DIGESTS[0].hex()}")
        update = codec.decode(Update, server.requests[6].body, max_bytes=10_000)
        assert (update.task, update.round, update.model) == ("digits", 4, DIGESTS[1])

        size = len(server.requests[2].body)
        assert status["device"] == "board"
        assert (status["round"], status["model"]) == (4, DIGESTS[1].hex())
        assert status["rounds_trained"] == 2
        assert (status["bytes_up"], status["update_bytes"]) == (2 * size, size)
        assert 0 < status["model_download_bytes"] < 200
        assert status["bytes_down"] == len(MODELS[0]) + status["model_download_bytes"]
        assert 0 < status["first_training_s"] < 8
        assert status["agent_rss_bytes"] < 30e6
        assert status["last_error"] == ""
    assert device.status()["state"] == "stopped"
    assert not (device.path / "state/pending.cbor").exists()
    files = sorted(path.name for path in (device.path / "state/models").iterdir())
    assert files == sorted(f"{digest.hex()}.tflite" for digest in DIGESTS)


def test_the_agent_imports_nothing_heavy(device: Device) -> None:
    task = unique_task()
    aggregator = Aggregator(order(1))
    with serving(aggregator) as server, announced((task, server.port)):
        device.start(task=task)
        held(server, 2)
        device.stop()
        aggregator.release.set()
    modules = {name.partition(".")[0] for name in (device.path / "modules").read_text().split()}
    assert "cbor2" in modules  # the control: this is the list of a real agent's modules
    heavy = {"numpy", "zeroconf", "asyncio", "tflite_runtime", "ai_edge_litert", "multiprocessing"}
    assert modules & heavy == set()


def test_an_update_is_sent_again_after_a_power_cut(device: Device) -> None:
    aggregator = Aggregator(order(3))
    aggregator.receipts = [None]

    def cut_the_power() -> None:
        device.processes[0].kill()

    aggregator.before_update = cut_the_power
    with serving(aggregator) as server:
        device.start(port=server.port)
        server.wait_for(puts)
        device.processes[0].wait(5)
        aggregator.before_update = lambda: None
        device.start(port=server.port, mode="exit")  # this trainer could not train it again
        held(server, 2)
        first, second = (each for each in server.requests if puts(each))
        assert (second.path, second.body) == (first.path, first.body)
        between = server.requests[server.requests.index(first) + 1 : server.requests.index(second)]
        assert [each.path for each in between] == ["/v1/task"]
        device.stop()
        aggregator.release.set()


def test_an_update_is_kept_while_the_aggregator_cannot_store_it(device: Device) -> None:
    aggregator = Aggregator(order(3))
    aggregator.receipts = [message(Refusal("the disk is full", "make room"), 507)]
    with serving(aggregator) as server:
        device.start(port=server.port)
        held(server, 2)
        first, second = (each for each in server.requests if puts(each))
        assert second.body == first.body
        assert "the aggregator answers 507: the disk is full (make room)" in device.log
        device.stop()
        aggregator.release.set()


@pytest.mark.parametrize(
    ("status", "words"), [(410, "is over"), (422, "norm"), (409, "a device.name of its own")]
)
def test_an_update_that_nobody_wants_is_dropped(device: Device, status: int, words: str) -> None:
    aggregator = Aggregator(order(3))
    aggregator.receipts = [message(Refusal("the norm is too large", ""), status)]
    with serving(aggregator) as server:
        device.start(port=server.port)
        held(server, 2)
        assert len([each for each in server.requests if puts(each)]) == 1
        device.stop()
        aggregator.release.set()
    assert words in device.log
    assert not (device.path / "state/pending.cbor").exists()


def test_why_there_is_no_work_is_told_once_and_shown_while_it_lasts(device: Device) -> None:
    aggregator = Aggregator(Wait(0.05, "no seat for you"), Wait(0.05, "no seat for you"))
    with serving(aggregator) as server:
        device.start(port=server.port)
        held(server, 3)
        status = device.wait_for_state("checking_in")
        assert status["reason"] == "no seat for you"
        assert device.log.count("no work: no seat for you") == 1
        device.stop()
        aggregator.release.set()


def test_a_signal_that_comes_twice_at_once_is_still_a_clean_stop(device: Device) -> None:
    """As from timeout(1), which signals the process and then its group."""
    aggregator = Aggregator(order(3))
    with serving(aggregator) as server:
        device.start(port=server.port)
        held(server, 2)
        device.processes[-1].send_signal(signal.SIGTERM)
        assert device.stop() == 0
        aggregator.release.set()
    assert device.status()["state"] == "stopped"


def test_an_update_outlasts_whoever_else_answers_at_the_address(device: Device) -> None:
    """A web server's 404 and 413, another task's refusal: none of them may cost the update."""
    aggregator = Aggregator(order(3))
    foreign = [answer(404, b"<html>"), answer(413, b"<html>"), message(Refusal("?", ""), 422)]
    aggregator.receipts = [*foreign]

    def another_task_takes_the_address() -> None:
        aggregator.task = "digits" if len(aggregator.receipts) != 1 else "other"

    aggregator.before_update = another_task_takes_the_address
    with serving(aggregator) as server:
        device.start(port=server.port)
        server.wait_for(puts, 3)
        # Now the other task is at the address. The update stays, and does not even leave.
        server.wait_for(lambda each: each.path == "/v1/task", 4)
        kept = (device.path / "state/pending.cbor").read_bytes()
        assert len([each for each in server.requests if puts(each)]) == 3
        aggregator.task = "digits"
        last = server.wait_for(puts, 4)
        assert last.body == kept
        held(server, 2)
        device.stop()
        aggregator.release.set()
    assert "of task other, not of digits" in device.log
    assert not (device.path / "state/pending.cbor").exists()  # the control: acknowledged


def test_a_round_that_has_not_begun_keeps_the_update_and_the_device_goes_on(device: Device) -> None:
    """An aggregator whose disk was restored: it must be able to get to that round again."""
    aggregator = Aggregator(order(3))
    aggregator.receipts = [message(Refusal("round 3 has not begun", ""), 404)]
    with serving(aggregator) as server:
        device.start(port=server.port)
        held(server, 2)
        assert (device.path / "state/pending.cbor").exists()
        device.stop()
        device.start(port=server.port)
        server.wait_for(puts, 2)
        held(server, 3)
        device.stop()
        aggregator.release.set()
    assert not (device.path / "state/pending.cbor").exists()


def test_a_trainer_that_dies_gives_the_seat_back(device: Device) -> None:
    aggregator = Aggregator(order(3))
    with serving(aggregator) as server:
        device.start(port=server.port, mode="kill")
        held(server, 3)  # the order, the failure, and the next one after the back-off
        failure = codec.decode(CheckIn, server.requests[2].body, max_bytes=1000).failure
        assert failure is not None
        assert failure.round == 3
        assert "probably because memory ran out" in failure.reason
        assert device.processes[-1].poll() is None
        assert device.stop() == 0
        aggregator.release.set()


def test_a_model_that_is_always_wrong_is_asked_for_ever_more_rarely(device: Device) -> None:
    """Each of the check-ins between the downloads succeeds; that must not reset the back-off."""
    aggregator = Aggregator(*[order(3)] * 4)
    aggregator.models = [b"wrong model" * 1000]
    with serving(aggregator) as server:
        device.start(port=server.port)
        held(server, 5)
        device.stop()
        aggregator.release.set()
    delays = re.findall(r"next try in (\S+) s$", device.log, re.MULTILINE)
    assert delays == ["0.1", "0.1", "0.2", "0.4"]
    assert device.log.count("another SHA-256") == 4


def test_the_deadline_of_the_round_bounds_the_training(device: Device) -> None:
    aggregator = Aggregator(order(3, deadline_s=0.5))
    with serving(aggregator) as server:
        device.start(port=server.port, mode="hang")
        held(server, 2)
        failure = codec.decode(CheckIn, server.requests[2].body, max_bytes=1000).failure
        assert failure is not None
        assert "deadline" in failure.reason
        device.stop()
        aggregator.release.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_mid_training_leaves_no_process(device: Device, number: signal.Signals) -> None:
    aggregator = Aggregator(order(3))
    with serving(aggregator) as server:
        device.start(port=server.port, mode="hang")
        device.wait_for_state("training")
        pid = device.processes[-1].pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        deadline = time.monotonic() + 5
        while not (workers := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(workers) == 1
        start = time.monotonic()
        assert device.stop(number) == 0
        assert time.monotonic() - start < STOPS_WITHIN_S
        assert not Path(f"/proc/{workers[0]}").exists()


def test_without_data_no_seat_is_taken(device: Device) -> None:
    (device.path / "data.npz").unlink()
    with serving(Aggregator(order(3))) as server:
        device.start(port=server.port)
        status = device.wait_for_state("backing_off")
        assert "there is no training data" in status["last_error"]
        assert server.requests == []
        device.stop()


def test_data_behind_a_closed_door_does_not_end_the_agent(device: Device) -> None:
    """A name that is too long stands for a directory that is closed, which it never is for root."""
    name = "x" * 300
    with pytest.raises(OSError, match="too long"):
        Path(device.path / name).stat()
    with serving(Aggregator(order(3))) as server:
        device.start(port=server.port, data=name)
        status = device.wait_for_state("backing_off")
        assert "training data" in status["last_error"]
        assert device.stop() == 0
        assert server.requests == []


@pytest.mark.parametrize(
    "reply",
    [
        message(Refusal("out of memory", ""), 500),
        answer(502, b"<html>"),
        answer(200, b"no CBOR", CBOR),
        answer(200, bytes(100_000), CBOR),
    ],
)
def test_after_a_difference_that_fails_the_whole_file_is_taken(
    device: Device, reply: bytes
) -> None:
    aggregator = Aggregator(order(3), order(4, model=1))
    asked: list[str] = []

    def script(request: Request) -> bytes | None:
        if request.method == "GET":
            asked.append(request.path.partition("?")[2].partition("=")[0])
        return reply if "?from=" in request.path else aggregator(request)

    with serving(script) as server:
        device.start(port=server.port)
        held(server, 3)
        device.stop()
        aggregator.release.set()
    assert asked == ["", "from", ""]
    assert "next try" not in device.log


def test_an_aggregator_that_is_dead_gives_way_to_another(device: Device) -> None:
    """Two announce the task; where the first answer leads, nobody listens."""
    task = unique_task()
    aggregator = Aggregator(order(1))
    with serving(Aggregator()) as gone:
        dead_port = gone.port
    with announced((task, dead_port)), serving(aggregator) as server:
        device.start(task=task)
        device.wait_for(lambda: "left alone for now: nothing listens" in device.log)
        with announced((task, server.port)):
            held(server, 2)
        device.stop()
        aggregator.release.set()
    memory = json.loads((device.path / "state/agent.json").read_text())
    assert memory["aggregator"] == f"http://127.0.0.1:{server.port}"


def test_a_second_agent_on_the_same_directory_is_refused(device: Device) -> None:
    aggregator = Aggregator()
    with serving(aggregator) as server:
        device.start(port=server.port)
        held(server, 1)
        device.start(port=server.port)
        assert device.processes[-1].wait(5) != 0
        assert "another agent uses" in device.log
        assert device.processes[0].poll() is None
        aggregator.release.set()


def test_files_of_another_life_do_not_stop_the_agent(device: Device) -> None:
    models = device.path / "state/models"
    models.mkdir(parents=True)
    (device.path / "state/pending.cbor").write_bytes(b"\x00torn")
    (device.path / "state/agent.json").write_bytes(b"{")
    (models / f"{DIGESTS[0].hex()}.tflite").write_bytes(b"torn")
    (models / f"{DIGESTS[0].hex()}.part").write_bytes(b"t")
    aggregator = Aggregator(order(3))
    aggregator.replies.append(order(3))  # after the damaged part is noticed
    with serving(aggregator) as server:
        device.start(port=server.port)
        server.wait_for(puts)
        device.stop()
        aggregator.release.set()
