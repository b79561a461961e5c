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
    TrainOrder,
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
# Nothing that waits this long goes unnoticed, and no machine is that slow.
LONG_S = 25.0


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
        async with service(tmp_path, make_task(policy), hold_s=LONG_S) as running:
            first, second = running.device("first"), running.device("second")
            order = await blocking(first.order)
            await blocking(second.order)
            waiting = {
                asyncio.ensure_future(blocking(running.device(f"w{i}").check_in)) for i in range(4)
            }
            while running.server.check_ins.held < 4:
                await asyncio.sleep(0.01)
            assert not any(each.done() for each in waiting)
            assert (await blocking(first.send, 1, await blocking(first.train, order))).status == 201
            # Long before the hold ends, which would send them away.
            released: list[TrainOrder | Wait] = []
            while len(released) < 2:
                done, waiting = await asyncio.wait(
                    waiting, timeout=LONG_S / 2, return_when=asyncio.FIRST_COMPLETED
                )
                assert done
                released += [each.result() for each in done]
            assert [getattr(each, "round", None) for each in released] == [2, 2]
            assert running.server.check_ins.held == 2
            running.server.stop()
            assert all(isinstance(each, Wait) for each in await asyncio.gather(*waiting))

    asyncio.run(scenario())


def test_who_is_held_in_vain_is_sent_away_with_jitter(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = Policy(1, 1, over_selection=1.0)
        async with service(tmp_path, make_task(policy), hold_s=0.1) as running:
            await blocking(running.device("first").order)
            waits = await asyncio.gather(
                *(blocking(running.device(f"w{i}").wait) for i in range(3))
            )
            assert all("seat" in each.reason for each in waits)
            assert len({each.retry_s for each in waits}) == 3

    asyncio.run(scenario())


def test_who_waits_for_a_round_gets_a_seat_when_it_opens(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = Policy(1, 1, over_selection=1.0, interval_s=0.5)
        async with service(tmp_path, make_task(policy), hold_s=LONG_S) as running:
            device = running.device("a")
            order = await blocking(device.order)
            assert (
                await blocking(device.send, 1, await blocking(device.train, order))
            ).status == 201
            # Held until the round opens by the clock: nothing else happens that could wake it.
            order = await asyncio.wait_for(blocking(device.order), LONG_S / 2)
            assert order.round == 2
            assert time.time() >= (await running.writer.do(store.load_rounds))[1].opens

    asyncio.run(scenario())


@pytest.mark.parametrize("jump_s", [-1e8, 0.0, 1e8])
def test_a_clock_that_was_set_delays_no_round_beyond_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    """Round 1 opened by a clock that is `jump_s` behind the one by which it ends."""
    interval_s = 1000.0

    async def scenario() -> None:
        real = time.time
        task = make_task(Policy(1, 1, over_selection=1.0, interval_s=interval_s))
        async with service(tmp_path, task, hold_s=0.1) as running:
            monkeypatch.setattr(time, "time", lambda: real() + jump_s)
            await run_round(running, "a")
            first, second = await running.writer.do(store.load_rounds)
            assert first.closed is not None
            assert 0.0 <= second.opens - first.closed <= interval_s
            if jump_s == 0.0:  # the control: without a jump the interval is kept to
                assert second.opens == pytest.approx(first.opens + interval_s)
            loop = asyncio.get_running_loop()
            assert running.coordinator.round.opens_s - loop.time() <= interval_s

    asyncio.run(scenario())


@pytest.mark.parametrize("jump_s", [-1e8, 0.0, 1e8])
def test_a_clock_that_was_set_while_it_was_down_delays_no_round_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    interval_s = 1000.0

    async def before() -> None:
        task = make_task(Policy(1, 1, over_selection=1.0, interval_s=interval_s))
        async with service(tmp_path, task, hold_s=0.1) as running:
            await run_round(running, "a")

    async def after() -> None:
        async with service(tmp_path, hold_s=0.1) as running:
            early_s = running.coordinator.round.opens_s - asyncio.get_running_loop().time()
            assert early_s <= interval_s
            if jump_s <= 0.0:
                assert early_s > interval_s / 2
            else:
                assert early_s <= 0.0

    asyncio.run(before())
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    asyncio.run(after())


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


def test_a_device_that_failed_gets_no_seat_after_a_restart_either(tmp_path: Path) -> None:
    policy = Policy(1, 1, over_selection=2.0)

    async def before() -> None:
        async with service(tmp_path, make_task(policy), hold_s=0.1) as running:
            for name in ("fails", "trains"):
                await blocking(running.device(name).order)
            await blocking(running.device("fails").wait, TrainingFailure(1, "out of memory"))

    async def after() -> None:
        async with service(tmp_path, hold_s=0.1) as running:
            assert running.coordinator.round.seats == {"trains"}
            assert "gave" in (await blocking(running.device("fails").wait)).reason
            await blocking(running.device("trains").order)  # the control
            await blocking(running.device("other").order)  # the seat is free

    asyncio.run(before())
    asyncio.run(after())


def test_a_seat_is_free_for_others_when_that_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def scenario() -> None:
        policy = Policy(1, 1, over_selection=1.0)
        async with service(tmp_path, make_task(policy), hold_s=0.1) as running:
            device, other = running.device("a"), running.device("b")
            await blocking(device.order)
            body = codec.encode(CheckIn(TASK, "a", TrainingFailure(1, "out of memory")))
            with monkeypatch.context() as patch:
                patch.setattr(store, "fail_seat", full)
                answer = await blocking(device.request, "POST", "/v1/checkin", body)
                assert answer.status == 507
                await blocking(other.wait)
            answer = await blocking(device.request, "POST", "/v1/checkin", body)
            assert answer.status == 200
            await blocking(other.order)

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

    async def scenario(data_dir: Path, failures: int, *, mended: bool = False) -> bytes:
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
                page = await blocking(running.device("m").request, "GET", "/healthz")
                assert page.status == 503
                assert b"disk is full" in page.body
                if not mended:
                    return b""
                monkeypatch.setattr(store, "finish_round", finish_round)
            while running.coordinator.round.number == 1:
                await running.coordinator.seats_changed.wait()
            page = await blocking(running.device("m").request, "GET", "/healthz")
            assert page.status == 200
            return running.coordinator.model.digest

    async def restarted(data_dir: Path) -> bytes:
        monkeypatch.setattr(store, "finish_round", finish_round)
        async with service(data_dir) as running:
            while running.coordinator.round.number == 1:
                await running.coordinator.seats_changed.wait()
            return running.coordinator.model.digest

    undisturbed = asyncio.run(scenario(tmp_path / "control", 0))
    tries.clear()
    assert asyncio.run(scenario(tmp_path / "mended", 2, mended=True)) == undisturbed
    tries.clear()
    asyncio.run(scenario(tmp_path / "full", 2))
    assert asyncio.run(restarted(tmp_path / "full")) == undisturbed


def test_stopping_releases_everybody_quickly(tmp_path: Path) -> None:
    async def scenario() -> float:
        async with service(tmp_path, make_task(Policy(1, 1)), hold_s=2 * LONG_S) as running:
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

    assert asyncio.run(scenario()) < LONG_S  # nobody was waited for
