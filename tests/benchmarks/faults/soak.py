# SPDX-License-Identifier: Apache-2.0
"""Thousands of rounds: memory, file descriptors and the database stay where they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.aggregator.process import init, serve
from tests.benchmarks.faults.client import STILL, Bodies, Light
from tests.benchmarks.faults.processes import open_files, rss_kib

SLOPE_KIB = 1.0
# What fills up once: retention, caches, the allocator's arenas.
WARM_UP_SHARE = 0.25
SAMPLES = 100


def ordeal(
    folder: Path,
    *,
    rounds: int,
    devices: int,
    module: str = "fedlearn_aggregator",
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Figures: slopes over the rounds after the warm-up, by least squares."""
    init(
        folder,
        *STILL,
        *("--cohort", str(devices), "--minimum", str(devices), "--over-selection", "1"),
        *("--rounds", str(rounds), "--deadline-s", "600", "--tokens", "0"),
    )
    began = time.monotonic()
    with serve(folder, "--no-mdns", "--log-level", "error", module=module) as aggregator:
        port = int(aggregator.url.rpartition(":")[2])
        pid = aggregator.process.pid
        every = max(1, rounds // SAMPLES)

        def sample(number: int) -> tuple[int, int, int, int]:
            size = sum(path.stat().st_size for path in folder.glob("aggregator.sqlite*"))
            if number % (every * 10) == 0:
                say(f"round {number}: {rss_kib(pid)} KiB, {open_files(pid)} files, {size} bytes")
            return number, rss_kib(pid), open_files(pid), size

        samples = asyncio.run(_play(port, rounds, devices, every, sample))
    warm = [each for each in samples if each[0] >= WARM_UP_SHARE * rounds]
    number, memory, files, size = (np.array(each, np.float64) for each in zip(*warm, strict=True))
    return {
        "rounds": rounds,
        "devices": devices,
        "seconds": round(time.monotonic() - began, 1),
        "rss_kib_first": int(memory[0]),
        "rss_kib_last": int(memory[-1]),
        "kib_a_round": round(float(np.polyfit(number, memory, 1)[0]), 4),
        "files_least": int(files.min()),
        "files_most": int(files.max()),
        "database_bytes_first": int(size[0]),
        "database_bytes_last": int(size[-1]),
        "database_bytes_a_round": round(float(np.polyfit(number, size, 1)[0]), 1),
    }


def faults(figures: dict[str, Any]) -> list[str]:
    """What does not hold. Of an ended round a row of some bytes stays, up to 10,000 of them."""
    return [
        what
        for what, holds in (
            ("memory grows", figures["kib_a_round"] < SLOPE_KIB),
            ("files stay open", figures["files_most"] - figures["files_least"] <= 4),
            ("the database grows", figures["database_bytes_a_round"] < 2000),
        )
        if not holds
    ]


async def _play(
    port: int,
    rounds: int,
    devices: int,
    every: int,
    sample: Callable[[int], tuple[int, int, int, int]],
) -> list[tuple[int, int, int, int]]:
    bodies = Bodies()
    samples = []

    async def device(light: Light, leads: bool) -> None:
        while (order := await light.order()) is not None:
            if leads and order.round % every == 0:
                samples.append(sample(order.round))
            assert await light.send(order, bodies.update(order, light.name)) == 201
        light.close()

    lights = [Light(port, f"device-{number:02}") for number in range(devices)]
    await asyncio.gather(*(device(light, not at) for at, light in enumerate(lights)))
    return samples
