# SPDX-License-Identifier: Apache-2.0
"""Devices leave at each phase of a round: it closes or is abandoned in time, and none hangs."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

from tests.aggregator.process import init, serve
from tests.benchmarks.faults.client import STILL, Bodies, Light

PHASES = ("after its seat", "while it downloads", "while it trains", "while it uploads")
SHARES = (0.1, 0.2, 0.3, 0.6)  # with the last one there are too few: the round is abandoned
MINIMUM = 0.6
LATE_S = 1.0


def ordeal(folder: Path, *, devices: int, deadline_s: float) -> dict[str, Any]:
    """A round for each phase and share; figures."""
    init(
        folder,
        *STILL,
        *("--cohort", str(devices), "--minimum", str(math.ceil(MINIMUM * devices))),
        *("--over-selection", "1", "--deadline-s", str(deadline_s), "--tokens", "0"),
    )
    plan = [(phase, share) for phase in PHASES for share in SHARES]
    with serve(folder, "--no-mdns", "--log-level", "error") as aggregator:
        port = int(aggregator.url.rpartition(":")[2])
        reports = asyncio.run(_play(port, devices, plan))
    rounds = [
        {
            "phase": phase,
            "share": share,
            "state": report["state"],
            "updates": report["updates"],
            "wall_s": round(report["wall_s"], 2),
        }
        for (phase, share), report in zip(plan, reports, strict=True)
    ]
    return {"devices": devices, "deadline_s": deadline_s, "rounds": rounds}


def faults(figures: dict[str, Any]) -> list[str]:
    """What does not hold."""
    late = figures["deadline_s"] + LATE_S
    wrong = []
    for each in figures["rounds"]:
        where = f"{each['share']:.0%} leave {each['phase']}"
        expected = "closed" if each["share"] <= 1 - MINIMUM else "abandoned"
        if each["state"] != expected:
            wrong.append(f"{where}: the round is {each['state']}")
        if each["wall_s"] > late:
            wrong.append(f"{where}: the round took {each['wall_s']} s")
    return wrong


async def _play(port: int, devices: int, plan: list[tuple[str, float]]) -> list[dict[str, Any]]:
    import json

    bodies = Bodies()
    watcher = Light(port, "watcher")
    for number, (phase, share) in enumerate(plan, 1):
        leaving = round(share * devices)
        names = [f"device-{at:02}" for at in range(devices)]
        await asyncio.gather(
            *(
                _device(port, name, bodies, number, phase if at < leaving else "")
                for at, name in enumerate(names)
            )
        )
        while True:
            _, page = await watcher.request("GET", "/v1/status")
            reports = json.loads(page)["rounds"]
            if len(reports) > number or reports[-1]["state"] in ("closed", "abandoned"):
                break
            await asyncio.sleep(0.05)
    watcher.close()
    return list(reports[: len(plan)])


async def _device(port: int, name: str, bodies: Bodies, number: int, leaves: str) -> None:
    light = Light(port, name)
    order = await light.order()
    assert order is not None
    assert order.round == number
    if leaves == "while it downloads":
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        path = f"/v1/models/{order.model.hex()}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readexactly(1000)
        writer.transport.abort()
    elif leaves == "while it uploads":
        body = bodies.update(order, name)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        path = f"/v1/rounds/{number}/updates/{name}"
        lines = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/cbor\r\n"
        writer.write(f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body[:5000])
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.transport.abort()
    elif not leaves:
        await asyncio.sleep(0.1)
        assert await light.send(order, bodies.update(order, name)) == 201
    light.close()
