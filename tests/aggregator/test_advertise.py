# SPDX-License-Identifier: Apache-2.0
"""Publishing by real mDNS on loopback, seen by the devices' own search."""

import asyncio
import json
import secrets
import sys

import pytest

from fedlearn_aggregator.advertise import advertised, service_info
from fedlearn_aggregator.rounds import Policy
from tests.aggregator.service import make_task

LOOPBACK = ("127.0.0.1",)


async def search(task: str, time_limit_s: float) -> dict[str, object] | None:
    """The first aggregator of `task` that a device finds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fedlearn.agent.discovery", "--task", task),
        *("--interface", LOOPBACK[0], "--time-limit-s", str(time_limit_s)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        return json.loads(line) if line else None
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def test_devices_find_it_while_it_serves_and_not_after() -> None:
    async def scenario() -> None:
        task = make_task(Policy(1, 1), name=f"t.{secrets.token_hex(4)}")
        async with advertised(task, "127.0.0.1", 4711, tls=False, interfaces=LOOPBACK) as published:
            assert published
            found = await search(task.name, 8.0)
            assert found is not None
            assert (found["address"], found["port"], found["tls"]) == (LOOPBACK[0], 4711, False)
        assert await search(task.name, 1.0) is None

    asyncio.run(scenario())


def test_without_multicast_it_serves_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        context = advertised(
            make_task(Policy(1, 1)), "127.0.0.1", 4711, tls=True, interfaces=("no-such-card",)
        )
        async with context as published:
            assert not published

    asyncio.run(scenario())
    assert 'url = "https://127.0.0.1:4711"' in caplog.text


def test_any_task_name_makes_one_label() -> None:
    task = make_task(Policy(1, 1), name="a.b" * 21)
    info = service_info(task, ["10.0.0.1"], 1, tls=True)
    label = info.name.removesuffix("._fedlearn._tcp.local.")
    assert len(label) <= 63
    assert "." not in label
    assert info.decoded_properties["task"] == task.name
