# SPDX-License-Identifier: Apache-2.0
"""Slow peers beside good ones: the slow are cut off in time, and the good hardly notice."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedlearn.wire.messages import TrainOrder
from tests.aggregator.process import init, serve
from tests.aggregator.service import head
from tests.benchmarks.faults.client import STILL, Bodies, Light
from tests.benchmarks.faults.processes import percentile

CUT_WITHIN_S = 15.0
P99_RATIO = 2.0
# A connection's request comes this often, as those of a fleet that trains.
_PACE_S = 0.1
_TRICKLE_S = 0.5
# Each kind of slowness: what is sent at once, and then a byte now and then.
_STARTS = (
    b"",
    b"POST /v1/checkin HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    head("POST", "/v1/checkin", 400),
    head("PUT", "/v1/rounds/1/updates/slow", None) + b"3e8\r\n",
)


def ordeal(
    folder: Path,
    *,
    slow: int,
    good: int,
    seconds: float,
    module: str = "fedlearn_aggregator",
) -> dict[str, Any]:
    """Figures: the good ones' latencies alone, and beside the slow ones."""
    cohort = ("--cohort", str(good), "--minimum", "1", "--over-selection", "1")
    init(folder, *STILL, *cohort, "--deadline-s", "3600", "--tokens", "0")
    with serve(folder, "--no-mdns", "--log-level", "error", module=module) as aggregator:
        port = int(aggregator.url.rpartition(":")[2])
        calm, disturbed, ends_s = asyncio.run(_play(port, slow, good, seconds))
    return {
        "slow": slow,
        "good": good,
        "requests": len(calm) + len(disturbed),
        "p99_calm_ms": round(percentile(calm, 0.99) * 1000, 2),
        "p99_disturbed_ms": round(percentile(disturbed, 0.99) * 1000, 2),
        "p99_ratio": round(percentile(disturbed, 0.99) / percentile(calm, 0.99), 2),
        "cut": len(ends_s),
        "cut_within_s_max": round(max(ends_s, default=0.0), 1),
    }


def faults(figures: dict[str, Any]) -> list[str]:
    """What does not hold."""
    return [
        what
        for what, holds in (
            ("slow peers are not cut off", figures["cut"] == figures["slow"]),
            ("they are cut off too late", figures["cut_within_s_max"] <= CUT_WITHIN_S),
            ("good ones have to wait", figures["p99_ratio"] <= P99_RATIO),
        )
        if not holds
    ]


async def _play(
    port: int, slow: int, good: int, seconds: float
) -> tuple[list[float], list[float], list[float]]:
    lights = [Light(port, f"good-{number}") for number in range(good)]
    bodies = Bodies()
    await _work(lights, bodies, 2.0)  # to warm up
    calm = await _work(lights, bodies, seconds)
    ends_s: list[float] = []
    async with asyncio.TaskGroup() as group:
        peers = [
            group.create_task(_be_slow(port, _STARTS[number % len(_STARTS)], ends_s, seconds))
            for number in range(slow)
        ]
        disturbed = await _work(lights, bodies, seconds)
        for each in peers:
            each.cancel()
    for light in lights:
        light.close()
    return calm, disturbed, ends_s


async def _work(lights: list[Light], bodies: Bodies, seconds: float) -> list[float]:
    """Everybody asks, and delivers when it has a seat; latencies of updates and of descriptors."""
    times_s: list[float] = []
    until = time.monotonic() + seconds

    async def one(light: Light) -> None:
        while time.monotonic() < until:
            begin = time.perf_counter()
            status, _ = await light.request("GET", "/v1/task")
            times_s.append(time.perf_counter() - begin)
            assert status == 200
            await asyncio.sleep(_PACE_S)

    async def round_of(light: Light) -> None:
        answer = await light.check_in()
        if isinstance(answer, TrainOrder):
            begin = time.perf_counter()
            status = await light.send(answer, bodies.update(answer, light.name))
            times_s.append(time.perf_counter() - begin)
            assert status == 201

    await asyncio.gather(*(round_of(each) for each in lights))
    await asyncio.gather(*(one(each) for each in lights))
    return times_s


async def _be_slow(port: int, start: bytes, ends_s: list[float], seconds: float) -> None:
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(start)
        while time.monotonic() - began < seconds:
            with suppress(TimeoutError):
                async with asyncio.timeout(_TRICKLE_S):
                    # An answer, 408, may come before the end.
                    if not await reader.read(4096):
                        raise ConnectionResetError
            if start:
                writer.write(b"a")
                await writer.drain()
    except OSError:
        ends_s.append(time.monotonic() - began)
    finally:
        writer.transport.abort()
