# SPDX-License-Identifier: Apache-2.0
"""Updates a second, each of some 9 kB and on the disk before its acknowledgement."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.aggregator.process import init, serve
from tests.benchmarks.faults.client import STILL, Bodies, Light
from tests.benchmarks.faults.processes import cpu_s, percentile, rss_kib

AIM = 500.0
COHORT = 1000
_AT_ONCE = 256  # connections that are opened at a time


def ordeal(
    folder: Path,
    *,
    devices: tuple[int, ...],
    rounds: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Figures for each number of connected devices."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    try:
        runs = []
        for count in devices:
            runs.append(_run(folder / str(count), count, rounds))
            say(f"{count} devices: {runs[-1]}")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return {"runs": runs, "update_bytes": runs[0]["update_bytes"]}


def faults(figures: dict[str, Any]) -> list[str]:
    """What does not hold."""
    return [
        f"{run['devices']} devices: {run['updates_a_second']} updates a second, {AIM:g} is the aim"
        for run in figures["runs"]
        if run["updates_a_second"] < AIM
    ]


def _run(folder: Path, devices: int, rounds: int) -> dict[str, Any]:
    cohort = min(devices, COHORT)
    init(
        folder,
        *STILL,
        *("--cohort", str(cohort), "--minimum", "1", "--over-selection", "1"),
        *("--rounds", str(rounds), "--deadline-s", "600", "--tokens", "0"),
    )
    with serve(folder, "--no-mdns", "--log-level", "error") as aggregator:
        port = int(aggregator.url.rpartition(":")[2])
        pid = aggregator.process.pid
        idle_kib = rss_kib(pid)
        idle_s = cpu_s(pid)
        latencies_s, spans, size = asyncio.run(_play(port, devices, cohort))
        updates = sum(count for count, _ in spans)
        return {
            "devices": devices,
            "cohort": cohort,
            "rounds": rounds,
            "update_bytes": size,
            "updates_a_second": round(updates / sum(seconds for _, seconds in spans), 1),
            # With its check-ins; what another machine would need.
            "server_cpu_ms_an_update": round((cpu_s(pid) - idle_s) / updates * 1000, 2),
            "p50_ms": round(percentile(latencies_s, 0.5) * 1000, 1),
            "p99_ms": round(percentile(latencies_s, 0.99) * 1000, 1),
            "kib_a_connection": round((rss_kib(pid) - idle_kib) / devices, 1),
        }


async def _play(
    port: int, devices: int, cohort: int
) -> tuple[list[float], list[tuple[int, float]], int]:
    """Everybody is connected and asks; who has a seat delivers when all seats are taken."""
    bodies = Bodies()
    latencies_s: list[float] = []
    rounds: dict[int, list[tuple[float, float]]] = {}
    seated: dict[int, int] = {}
    full: dict[int, asyncio.Event] = {}
    opening = asyncio.Semaphore(_AT_ONCE)
    size = 0

    async def device(number: int) -> None:
        nonlocal size
        light = Light(port, f"device-{number:04}")
        async with opening:
            await light.request("GET", "/healthz")
        while (order := await light.order()) is not None:
            body = bodies.update(order, light.name)
            size = len(body)
            ready = full.setdefault(order.round, asyncio.Event())
            seated[order.round] = seated.get(order.round, 0) + 1
            if seated[order.round] == cohort:
                ready.set()
            await ready.wait()
            begin = time.perf_counter()
            assert await light.send(order, body) == 201
            end = time.perf_counter()
            latencies_s.append(end - begin)
            rounds.setdefault(order.round, []).append((begin, end))
        light.close()

    await asyncio.gather(*(device(number) for number in range(devices)))
    spans = [
        (len(each), max(end for _, end in each) - min(begin for begin, _ in each))
        for each in rounds.values()
    ]
    return latencies_s, spans, size
