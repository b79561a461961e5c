# SPDX-License-Identifier: Apache-2.0
"""Rounds over real HTTP: seats, long polls, deadlines, a full disk."""

import asyncio
import dataclasses
import json
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from fedlearn.wire import codec
from fedlearn.wire.messages import (
    CheckIn,
    TaskDescriptor,
    TrainingFailure,
    Wait,
)
from fedlearn_aggregator import coordinator, store
from fedlearn_aggregator.rounds import Policy, State
from tests.aggregator.devices import (
    MAX_BYTES,
    METRICS,
    TASK,
    Device,
    start_model,
)
from tests.aggregator.service import address, blocking, head, make_task, run_round, service

POLICY = Policy(2, 1, max_rounds=3)


def test_rounds_until_the_task_is_finished(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            device = running.device("a")
            answer = await blocking(device.request, "GET", "/v1/task")
            task = codec.decode(TaskDescriptor, answer.body, max_bytes=MAX_BYTES)
            assert (task.round, task.state, task.model) == (1, "open", start_model().digest)
            for _ in range(3):
                await run_round(running, "a", "b")
            waiting = await blocking(device.wait)
            assert "finished" in waiting.reason
            assert waiting.retry_s >= 300
            answer = await blocking(device.request, "GET", "/v1/status")
            status = json.loads(answer.body)
            assert (status["state"], status["rounds_closed"]) == ("finished", 3)
            assert [r["updates"] for r in status["rounds"]] == [2, 2, 2]
            assert status["rounds"][1]["base"] == status["rounds"][0]["result"]
            assert all(len(r["bytes_up"]) == 2 for r in status["rounds"])
            assert status["rounds"][0]["bytes_down"] == [len(start_model().data)] * 2
            assert status["rounds"][0]["slowest_train_s"] == METRICS.train_s
            assert status["rounds"][0]["wall_s"] > 0
            late = await blocking(device.send, 3, b"other bytes")
            assert late.status == 409

    asyncio.run(scenario())


def test_held_check_ins_are_released_together_up_to_the_seats(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = Policy(1, 1, over_selection=2.0, max_rounds=9)
        async with service(tmp_path, make_task(policy), hold_s=1.5) as running:
            first, second = running.device("first"), running.device("second")
            order = await blocking(first.order)
            await blocking(second.order)
            waiting = [
                asyncio.ensure_future(blocking(running.device(f"w{i}").check_in)) for i in range(4)
            ]
            while running.server.check_ins.held < 4:
                await asyncio.sleep(0.01)
            assert not any(each.done() for each in waiting)
            started = time.monotonic()
            assert (await blocking(first.send, 1, await blocking(first.train, order))).status == 201
            done, rest = await asyncio.wait(waiting, timeout=1.0)
            assert len(done) == 2
            assert [getattr(each.result(), "round", None) for each in done] == [2, 2]
            assert time.monotonic() - started < 1.5
            answers = await asyncio.gather(*rest)
            sent_away = [each for each in answers if isinstance(each, Wait)]
            assert all("seat" in each.reason for each in sent_away)
            assert len({each.retry_s for each in sent_away}) == 2  # jittered

    asyncio.run(scenario())


def test_a_device_that_hung_up_takes_no_seat(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = Policy(1, 1, over_selection=1.0, max_rounds=9)
        async with service(tmp_path, make_task(policy)) as running:
            first = running.device("first")
            order = await blocking(first.order)
            with socket.create_connection(address(running)) as gone:
                body = codec.encode(CheckIn(TASK, "gone"))
                gone.sendall(head("POST", "/v1/checkin", len(body)) + body)
                while running.server.check_ins.held < 1:
                    await asyncio.sleep(0.01)
            while running.server.check_ins.held:
                await asyncio.sleep(0.01)
            await blocking(first.send, 1, await blocking(first.train, order))
            await blocking(running.device("stays").order)
            assert running.coordinator.round.seats == {"stays"}

    asyncio.run(scenario())


def test_a_restarted_device_gets_the_same_order_and_a_failed_one_gives_its_seat(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        policy = Policy(1, 1, over_selection=1.0)
        async with service(tmp_path, make_task(policy), hold_s=0.1) as running:
            first, second = running.device("first"), running.device("second")
            order, again = await blocking(first.order), await blocking(first.order)
            assert dataclasses.replace(again, deadline_s=order.deadline_s) == order
            assert again.deadline_s <= order.deadline_s
            await blocking(second.wait)
            await blocking(first.wait, TrainingFailure(1, "out of\nmemory\x1b[31m"))
            await blocking(second.order)

    asyncio.run(scenario())


def test_the_deadline_closes_with_the_minimum_and_abandons_below_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = Policy(2, 1, deadline_s=0.4)
        async with service(tmp_path, make_task(policy)) as running:
            device = running.device("a")
            order = await blocking(device.order)
            assert (
                await blocking(device.send, 1, await blocking(device.train, order))
            ).status == 201
            order = await blocking(device.order)  # held until round 1 ends at its deadline
            assert order.round == 2
            assert order.model != start_model().digest
            late = await blocking(device.train, order)
            while running.coordinator.round.number < 3:
                await running.coordinator.seats_changed.wait()
            answer = await blocking(device.send, 2, late)
            assert answer.status == 410
            third = await blocking(device.order)
            assert (third.round, third.model) == (3, order.model)
            assert third.seed != order.seed
            assert running.coordinator.ended == {State.CLOSED: 1, State.ABANDONED: 1}

    asyncio.run(scenario())


def test_a_round_opens_after_the_interval(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = Policy(1, 1, interval_s=1000.0)
        async with service(tmp_path, make_task(policy), hold_s=0.2) as running:
            device = running.device("a")
            order = await blocking(device.order)
            await blocking(device.send, 1, await blocking(device.train, order))
            answer = await blocking(device.wait)
            while answer.reason.startswith("this round"):
                answer = await blocking(device.wait)
            assert "later" in answer.reason
            assert answer.retry_s > 100

    asyncio.run(scenario())


def test_a_round_that_cannot_be_written_is_closed_when_it_can_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "RETRY_WRITE_S", 0.05)
    tries: list[int] = []
    finish_round = store.finish_round

    def full(*_arguments: object, **_options: object) -> bytes:
        tries.append(1)
        raise sqlite3.OperationalError("database or disk is full")

    async def scenario(data_dir: Path, failures: int) -> bytes:
        if failures:
            monkeypatch.setattr(store, "finish_round", full)
        async with service(data_dir, make_task(POLICY)) as running:
            for name in "ab":
                device = running.device(name)
                body = await blocking(device.train, await blocking(device.order))
                assert (await blocking(device.send, 1, body)).status == 201
            if failures:
                while len(tries) < failures:
                    await asyncio.sleep(0.01)
                assert running.coordinator.round.state is State.AGGREGATING
                return b""
            while running.coordinator.round.number == 1:
                await running.coordinator.seats_changed.wait()
            return running.coordinator.model.digest

    async def restarted(data_dir: Path) -> bytes:
        monkeypatch.setattr(store, "finish_round", finish_round)
        async with service(data_dir) as running:
            while running.coordinator.round.number == 1:
                await running.coordinator.seats_changed.wait()
            return running.coordinator.model.digest

    undisturbed = asyncio.run(scenario(tmp_path / "control", 0))
    asyncio.run(scenario(tmp_path / "full", 2))
    assert asyncio.run(restarted(tmp_path / "full")) == undisturbed


def test_stopping_releases_everybody_quickly(tmp_path: Path) -> None:
    async def scenario() -> float:
        async with service(tmp_path, make_task(Policy(1, 1)), hold_s=30.0) as running:
            for i in range(2):
                await blocking(running.device(f"s{i}").check_in)
            held = [
                asyncio.ensure_future(blocking(Device(running.url, f"w{i}").wait)) for i in range(5)
            ]
            while running.server.check_ins.held < 5:
                await asyncio.sleep(0.01)
            stopped = time.monotonic()
            running.server.stop()
            answers = await asyncio.gather(*held)
            assert all("stopping" in each.reason for each in answers)
        return time.monotonic() - stopped

    assert asyncio.run(scenario()) < 2.0
