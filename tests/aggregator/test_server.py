# SPDX-License-Identifier: Apache-2.0
"""The protocol over real HTTP: what a well-meaning device sees, and what every other one."""

import asyncio
import contextlib
import dataclasses
import json
import math
import socket
import sqlite3
import struct
import time
from pathlib import Path
from urllib.parse import urlsplit

import cbor2

from fedlearn import codec, delta
from fedlearn.messages import (
    CheckIn,
    Difference,
    EncodedTensor,
    Encoding,
    TaskDescriptor,
    TrainingFailure,
    Wait,
)
from fedlearn_aggregator.rounds import Policy, State
from tests.aggregator.devices import (
    MAX_BYTES,
    METRICS,
    TASK,
    Answer,
    Device,
    make_update,
    start_model,
)
from tests.aggregator.service import Service, blocking, make_task, service

POLICY = Policy(2, 1, max_rounds=3)


async def run_round(running: Service, *names: str) -> None:
    """Every device trains once."""
    before = running.coordinator.round

    def one(name: str) -> None:
        device = running.device(name)
        order = device.order()
        assert device.send(order.round, device.train(order)).status == 201
        device.close()

    await asyncio.gather(*(blocking(one, name) for name in names))
    while running.coordinator.round is before and not running.coordinator.finished:
        await running.coordinator.seats_changed.wait()


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


def variants() -> dict[str, tuple[int, bytes]]:
    """Bad updates: what is wrong, the status, the body."""
    good = make_update(start_model(), "a", 1)
    change = dataclasses.replace
    first, *others = good.tensors
    size = math.prod(start_model().array(first.index).shape)
    wide = b"".join(struct.pack("<i", 255) for _ in range(size))
    return {
        "no CBOR": (400, b"hello"),
        "empty": (400, b""),
        "NaN": (422, cbor_with_nan(codec.encode(good))),
        "another kind": (422, codec.encode(CheckIn(TASK, "a"))),
        "another task": (422, codec.encode(change(good, task="other"))),
        "another round": (422, codec.encode(change(good, round=2))),
        "another device": (422, codec.encode(change(good, device="b"))),
        "another model": (422, codec.encode(change(good, model=bytes(32)))),
        "no samples": (422, codec.encode(change(good, samples=0))),
        "too many samples": (422, codec.encode(change(good, samples=1001))),
        "a tensor is missing": (422, codec.encode(change(good, tensors=tuple(others)))),
        "a tensor twice": (422, codec.encode(change(good, tensors=(*good.tensors, first)))),
        "a foreign tensor": (
            422,
            codec.encode(change(good, tensors=(change(first, index=999), *others))),
        ),
        "another shape": (
            422,
            codec.encode(
                change(good, tensors=(EncodedTensor(first.index, Encoding.INT8, b"\1"), *others))
            ),
        ),
        "weights outside int8": (
            422,
            codec.encode(
                change(good, tensors=(EncodedTensor(first.index, Encoding.INT32, wide), *others))
            ),
        ),
        "too large": (413, bytes(200_000)),
    }


def cbor_with_nan(body: bytes) -> bytes:
    values = cbor2.loads(body)
    values["metrics"]["loss_after"] = math.nan
    return cbor2.dumps(values, canonical=True)


def test_bad_updates_are_refused_with_a_reason_and_cost_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            device = running.device("a")
            good = await blocking(device.train, await blocking(device.order))
            for what, (status, body) in variants().items():
                answer = await blocking(device.send, 1, body)
                assert (what, answer.status) == (what, status), answer.body
                assert answer.refusal.error, what
            assert running.coordinator.round.updates == set()
            assert (await blocking(device.send, 2, good)).status == 404
            assert (await blocking(running.device("b").send, 1, b"x")).status == 422  # no seat
            first = await blocking(device.send, 1, good)  # the control
            assert (first.status, first.receipt.duplicate) == (201, False)
            again = await blocking(device.send, 1, good)
            assert (again.status, again.receipt.duplicate) == (200, True)
            other = codec.encode(dataclasses.replace(make_update(start_model(), "a", 1), samples=3))
            assert (await blocking(device.send, 1, other)).status == 409
            assert running.coordinator.verdicts["stored"] == 1

    asyncio.run(scenario())


def test_an_acknowledged_update_is_acknowledged_again_after_its_round(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(Policy(1, 1))) as running:
            device, never = running.device("a"), running.device("never")
            body = await blocking(device.train, await blocking(device.order))
            late = await blocking(never.train, await blocking(never.order))
            assert (await blocking(device.send, 1, body)).status == 201
            while running.coordinator.round.number == 1:
                await running.coordinator.seats_changed.wait()
            assert (await blocking(device.send, 1, body)).status == 200
            assert (await blocking(device.send, 1, body + b"\0")).status == 409
            answer = await blocking(never.send, 1, late)
            assert answer.status == 410
            assert "check in" in answer.refusal.hint

    asyncio.run(scenario())


def test_two_copies_at_once_are_stored_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            device = running.device("a")
            body = await blocking(device.train, await blocking(device.order))
            answers = await asyncio.gather(
                *(blocking(running.device("a").send, 1, body) for _ in range(6))
            )
            assert sorted(each.status for each in answers) == [200] * 5 + [201]
            assert running.coordinator.round.updates == {"a"}

    asyncio.run(scenario())


def test_a_full_disk_answers_507_and_takes_nothing_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY, "all")) as running:
            a, b = (Device(running.url, name, tail="all") for name in "ab")
            body_a = await blocking(a.train, await blocking(a.order))
            body_b = await blocking(b.train, await blocking(b.order))
            assert (await blocking(a.send, 1, body_a)).status == 201

            def limit(db: sqlite3.Connection, pages: int) -> None:
                db.execute(f"PRAGMA max_page_count={pages}")

            await running.writer.do(limit, 1)  # SQLite takes the present size instead
            answer = await blocking(b.send, 1, body_b)
            assert answer.status == 507
            assert answer.headers["Retry-After"]
            assert "later" in answer.refusal.hint
            assert running.coordinator.round.updates == {"a"}
            assert (await blocking(a.send, 1, body_a)).status == 200
            await running.writer.do(limit, 1_000_000)
            assert (await blocking(b.send, 1, body_b)).status == 201

    asyncio.run(scenario())


def test_check_ins_that_make_no_sense(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            device = running.device("a")

            async def post(body: bytes, **headers: str) -> Answer:
                return await blocking(
                    lambda: device.request("POST", "/v1/checkin", body, **headers)
                )

            good = codec.encode(CheckIn(TASK, "a"))
            assert (await post(codec.encode(CheckIn("other", "a")))).status == 404
            assert (await post(bytes(5000))).status == 413
            assert (await post(b"\xff")).status == 400
            assert (await post(good, Content_Type="text/plain")).status == 415
            assert (await post(good, Content_Encoding="deflate")).status == 415
            bad_name = cbor2.loads(good) | {"device": "../etc"}
            assert (await post(cbor2.dumps(bad_name, canonical=True))).status == 422
            assert (await post(good)).status == 200  # the control

    asyncio.run(scenario())


def address(running: Service) -> tuple[str, int]:
    host, port = urlsplit(running.url).netloc.split(":")
    return host, int(port)


def head(method: str, path: str, length: int | None) -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/cbor", size]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_bodies_are_counted_before_they_are_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            path = "/v1/rounds/1/updates/a"

            def declared() -> bytes:
                with socket.create_connection(address(running), 5.0) as peer:
                    peer.sendall(head("PUT", path, 1 << 40))
                    return peer.recv(4096)

            def chunked() -> bytes:
                with socket.create_connection(address(running), 5.0) as peer:
                    peer.sendall(head("PUT", path, None))
                    with contextlib.suppress(OSError):  # the aggregator has enough
                        for _ in range(1000):
                            peer.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                    return peer.recv(4096)

            assert b" 413 " in (await blocking(declared)).splitlines()[0]
            # The reset of the connection may overtake the answer, and is as clear.
            with contextlib.suppress(ConnectionResetError):
                assert b" 413 " in (await blocking(chunked)).splitlines()[0]

    asyncio.run(scenario())


def test_a_slow_peer_is_sent_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY), body_timeout_s=0.2) as running:

            def slow() -> bytes:
                with socket.create_connection(address(running), 5.0) as peer:
                    peer.sendall(head("POST", "/v1/checkin", 100) + b"half")
                    return peer.recv(4096)

            assert b" 408 " in (await blocking(slow)).splitlines()[0]

    asyncio.run(scenario())


def test_models_are_immutable_and_resumable(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            device, data = running.device("a"), start_model().data
            path = f"/v1/models/{start_model().digest.hex()}"
            etag = f'"{start_model().digest.hex()}"'

            async def get(path: str = path, **headers: str) -> Answer:
                return await blocking(lambda: device.request("GET", path, **headers))

            whole = await get()
            assert (whole.status, whole.body, whole.headers["ETag"]) == (200, data, etag)
            assert (await get(If_None_Match=etag)).status == 304
            rest = await get(Range="bytes=50000-", If_Range=etag)
            assert (rest.status, rest.body) == (206, data[50000:])
            assert rest.headers["Content-Range"] == f"bytes 50000-{len(data) - 1}/{len(data)}"
            assert (await get(Range="bytes=0-0")).body == data[:1]
            assert (await get(Range="bytes=-5")).body == data[-5:]
            assert (await get(Range="bytes=50000-", If_Range='"other"')).body == data
            assert (await get(Range="bytes=0-1,3-4")).body == data
            behind = await get(Range=f"bytes={len(data)}-")
            assert behind.status == 416
            assert behind.refusal.error
            assert (await get("/v1/models/" + "0" * 64)).status == 404
            assert (await get("/v1/models/../task")).status == 404
            assert (await get(path + "?from=nonsense")).status == 404

    asyncio.run(scenario())


def test_a_known_model_is_brought_up_to_date_by_a_difference(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            device, base = running.device("a"), start_model()
            await run_round(running, "a", "b")
            target = running.coordinator.model
            path = f"/v1/models/{target.digest.hex()}?from="
            answers = await asyncio.gather(
                *(
                    blocking(running.device(f"d{i}").request, "GET", path + base.digest.hex())
                    for i in range(5)
                )
            )
            assert len({each.body for each in answers}) == 1
            assert len(answers[0].body) < len(base.data) // 10
            found = codec.decode(Difference, answers[0].body, max_bytes=MAX_BYTES)
            assert (found.base, found.target) == (base.digest, target.digest)
            assert delta.apply_difference(base.data, found.encoding, found.data) == target.data
            unknown = await blocking(device.request, "GET", path + "ab" * 32)
            assert unknown.headers["Content-Type"] == "application/octet-stream"
            assert unknown.body == target.data

    asyncio.run(scenario())


def test_pages_for_people_and_monitors(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            device = running.device("a")
            assert (await blocking(device.request, "GET", "/healthz")).body == b"ok"
            await blocking(device.send, 1, b"nonsense")
            await blocking(device.check_in)
            page = (await blocking(device.request, "GET", "/metrics")).body.decode()
            samples = dict(
                line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")
            )
            assert samples['fedlearn_seats{task="digits"}'] == "1"
            assert samples['fedlearn_round_state{task="digits",state="training"}'] == "1"
            route = "/v1/rounds/{round}/updates/{device}"
            name = f'fedlearn_responses_total{{task="digits",route="{route}",status="422"}}'
            assert samples[name] == "1"
            for path, status in (("/v1/nothing", 404), ("/v1/rounds/x/updates/a", 405)):
                answer = await blocking(device.request, "GET", path)
                assert answer.status == status
                assert answer.refusal.error

    asyncio.run(scenario())


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
