# SPDX-License-Identifier: Apache-2.0
"""Caches whose keys are chosen by peers: bounded, and not to be spoilt."""

import asyncio
import sqlite3
from collections.abc import Coroutine
from pathlib import Path

import pytest

from fedlearn.wire import delta
from fedlearn_aggregator import shelf, store
from fedlearn_aggregator.rounds import Policy
from fedlearn_aggregator.shelf import Shelf
from tests.aggregator.devices import start_model
from tests.aggregator.service import Service, make_task, run_round, service

START = start_model().digest


async def one_round(running: Service) -> bytes:
    await run_round(running, "a")
    return running.coordinator.model.digest


def run(scenario: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def test_no_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(Policy(1, 1, over_selection=1.0))) as running:
            current = await one_round(running)
            cache = Shelf(running.writer)

            def exhausted(*_arguments: object) -> None:
                raise MemoryError

            with monkeypatch.context() as patch:
                patch.setattr(delta, "encode_difference", exhausted)
                for _ in range(2):
                    with pytest.raises(MemoryError):
                        await cache.difference(START, current, current)
            assert await cache.difference(START, current, current)

    run(scenario())


def test_one_that_hangs_up_cancels_nothing_for_the_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with service(tmp_path, make_task(Policy(1, 1, over_selection=1.0))) as running:
            cache = Shelf(running.writer)
            gone, stays = (asyncio.create_task(cache.model(START)) for _ in range(2))
            await asyncio.sleep(0)
            gone.cancel()
            assert await stays == start_model().data
            assert gone.cancelled()

    run(scenario())


def test_what_does_not_exist_pushes_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []
    encode, load = delta.encode_difference, store.load_model

    def counted_encode(old: bytes, new: bytes) -> tuple[int, bytes]:
        made.append(new)
        return encode(old, new)

    def counted_load(db: sqlite3.Connection, digest: bytes) -> bytes | None:
        made.append(digest)
        return load(db, digest)

    async def scenario() -> None:
        async with service(tmp_path, make_task(Policy(1, 1, over_selection=1.0))) as running:
            current = await one_round(running)
            cache = Shelf(running.writer)
            monkeypatch.setattr(delta, "encode_difference", counted_encode)
            monkeypatch.setattr(store, "load_model", counted_load)
            assert await cache.difference(START, current, current)
            assert made  # the control: the first time there is work to do
            strangers = [bytes([i]) * 32 for i in range(2 * shelf.MAX_DIFFERENCES)]
            found = [await cache.difference(each, current, current) for each in strangers]
            found += await asyncio.gather(
                *(cache.difference(each, current, current) for each in strangers)
            )
            assert found == [None] * 4 * shelf.MAX_DIFFERENCES
            made.clear()
            assert await cache.difference(START, current, current)
            assert await cache.model(current)
            assert await cache.difference(current, START, current) is None  # not the current one
            assert made == []

    run(scenario())
