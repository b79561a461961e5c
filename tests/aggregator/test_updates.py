# SPDX-License-Identifier: Apache-2.0
"""Updates over real HTTP: each is stored once, or refused with a reason."""

import asyncio
import dataclasses
import math
import sqlite3
import struct
from pathlib import Path

import cbor2

from fedlearn.wire import codec
from fedlearn.wire.messages import (
    ActivationRange,
    CheckIn,
    EncodedTensor,
    Encoding,
)
from fedlearn_aggregator.robust import AggregationSettings
from fedlearn_aggregator.rounds import Policy
from fedlearn_aggregator.updates import check
from tests.aggregator.devices import (
    TASK,
    Device,
    make_update,
    start_model,
)
from tests.aggregator.service import blocking, make_task, service

POLICY = Policy(2, 1, max_rounds=3)


def variants() -> dict[str, tuple[int, bytes]]:
    """Bad updates: what is wrong, the status, the body."""
    good = make_update(start_model(), "a", 1)
    change = dataclasses.replace
    first, *others = good.tensors
    huge = change(good.metrics, loss_after=1e308)
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
        "a loss that is no loss": (422, codec.encode(change(good, metrics=huge))),
        "no samples": (422, codec.encode(change(good, samples=0))),
        "too many samples": (422, codec.encode(change(good, samples=1001))),
        "no tensor": (422, codec.encode(change(good, tensors=()))),
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
        "a range of no tensor": (422, codec.encode(change(good, ranges=(span(999),)))),
        "a range inside out": (422, codec.encode(change(good, ranges=(span(14, low=2.0),)))),
        "two ranges of one tensor": (422, codec.encode(change(good, ranges=(span(14),) * 2))),
        "more ranges than tensors": (
            422,
            codec.encode(change(good, ranges=tuple(span(i) for i in range(99)))),
        ),
        "too large": (413, bytes(200_000)),
    }


def span(index: int, low: float = 0.0) -> ActivationRange:
    return ActivationRange(index, low, 1.0, 0.0)


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


def test_an_update_over_the_norm_is_refused(tmp_path: Path) -> None:
    good = make_update(start_model(), "a", 1)
    bounded = make_task(POLICY, aggregation=AggregationSettings(max_norm=1e9))
    checked = check(codec.encode(good), bounded, 1, start_model(), "a")
    assert checked.norm

    norm = checked.norm

    async def answers(path: Path, limit: float) -> tuple[int, str]:
        settings = AggregationSettings(max_norm=limit)
        async with service(path, make_task(POLICY, aggregation=settings)) as running:
            device = running.device("a")
            await blocking(device.order)
            answer = await blocking(device.send, 1, codec.encode(good))
            return answer.status, "" if answer.status == 201 else answer.refusal.error

    for name in "under", "over":
        (tmp_path / name).mkdir()
    assert asyncio.run(answers(tmp_path / "under", norm * 1.001)) == (
        201,
        "",
    )  # the control
    status, error = asyncio.run(answers(tmp_path / "over", norm * 0.999))
    assert status == 422
    assert "norm" in error


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
