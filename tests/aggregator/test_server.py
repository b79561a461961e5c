# SPDX-License-Identifier: Apache-2.0
"""The HTTP server against peers that are rude, slow, large or only curious."""

import asyncio
import contextlib
import json
import socket
import sqlite3
import threading
from pathlib import Path

import cbor2
import pytest

from fedlearn.errors import StorageError
from fedlearn.wire import codec
from fedlearn.wire.messages import (
    CheckIn,
)
from fedlearn_aggregator import store
from fedlearn_aggregator.rounds import Policy
from tests.aggregator.devices import (
    TASK,
    Answer,
)
from tests.aggregator.service import address, blocking, head, make_task, service
from tests.aggregator.test_store import Failing

POLICY = Policy(2, 1, max_rounds=3)


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


def test_malformed_http_is_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:

            def send(data: bytes) -> bytes:
                with socket.create_connection(address(running), 5.0) as peer:
                    peer.sendall(data)
                    return peer.recv(4096)

            path = "/v1/rounds/1/updates/a"
            assert b" 400 " in await blocking(send, head("PUT", path, None) + b"zz\r\n")
            assert b" 404 " in await blocking(send, head("PUT", path.replace("1", "9" * 30), 0))
            with socket.create_connection(address(running)) as rude:
                rude.sendall(head("PUT", path, 100) + b"half")
            assert (await blocking(running.device("a").request, "GET", "/healthz")).status == 200

    with caplog.at_level("INFO"):
        asyncio.run(scenario())
    assert "malformed HTTP" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_slow_peer_is_sent_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY), grace_s=0.2) as running:

            def slow() -> bytes:
                with socket.create_connection(address(running), 5.0) as peer:
                    peer.sendall(head("POST", "/v1/checkin", 100) + b"half")
                    return peer.recv(4096)

            assert b" 408 " in (await blocking(slow)).splitlines()[0]

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


def test_a_refusal_gives_no_control_characters_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            name = "%1b%5b31m" + "x" * 1000
            answer = await blocking(
                running.device("a").request, "PUT", f"/v1/rounds/1/updates/{name}", b"body"
            )
            assert answer.status == 422
            assert answer.refusal.error.startswith("[31mxxx")
            assert "no seat" not in answer.refusal.error  # cut before it
            assert answer.refusal.error.isprintable()
            plain = await blocking(running.device("b").send, 1, b"body")
            assert plain.refusal.error == "b has no seat in round 1"  # the control

    asyncio.run(scenario())


def test_the_status_is_read_beside_the_writer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            holds, free = threading.Event(), threading.Event()

            def hold(_db: sqlite3.Connection) -> None:
                holds.set()
                free.wait()

            held = asyncio.create_task(running.writer.do(hold))
            try:
                await blocking(holds.wait)
                pages = [
                    blocking(running.device(f"m{i}").request, "GET", "/v1/status") for i in range(3)
                ]
                answers = await asyncio.wait_for(asyncio.gather(*pages), 20)
                assert [each.status for each in answers] == [200] * 3
                assert json.loads(answers[0].body)["task"] == TASK
                # The control: what needs the writer waits.
                order = asyncio.ensure_future(blocking(running.device("a").order))
                await blocking(running.device("m").request, "GET", "/healthz")
                assert not order.done()
                assert not held.done()
            finally:
                free.set()
            await order

    asyncio.run(scenario())


def test_health_tells_of_a_store_that_broke(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(POLICY)) as running:
            device = running.device("a")
            assert (await blocking(device.request, "GET", "/healthz")).status == 200  # control
            writer = running.writer
            writer._db = Failing(writer._db, "COMMIT", "ROLLBACK")  # type: ignore[assignment]
            with contextlib.suppress(StorageError):
                await writer.do(store.load_task)
            assert (await blocking(device.request, "GET", "/healthz")).status == 503
            body = codec.encode(CheckIn(TASK, "a"))
            answer = await blocking(device.request, "POST", "/v1/checkin", body)
            assert answer.status == 507  # and nobody waits for ever

    asyncio.run(scenario())
