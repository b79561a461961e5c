# SPDX-License-Identifier: Apache-2.0
"""An aggregator in this process, on a free port of loopback, for the length of a test."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fedlearn.trainer.tails import trainable_tensors
from fedlearn.wire.messages import Limits, TrainingPlan
from fedlearn_aggregator import schema
from fedlearn_aggregator.begin import begin
from fedlearn_aggregator.coordinator import Coordinator
from fedlearn_aggregator.identity.access import Access
from fedlearn_aggregator.identity.folder import Folder
from fedlearn_aggregator.optimizers import OptimizerSettings
from fedlearn_aggregator.patience import PatientSite
from fedlearn_aggregator.rounds import Policy
from fedlearn_aggregator.server import Server
from fedlearn_aggregator.task import Task, largest_update
from fedlearn_aggregator.writer import Writer
from tests.aggregator.devices import TASK, Device, start_model

T = TypeVar("T")

_DEVICES = ThreadPoolExecutor(32)


def make_task(policy: Policy, tail: str = "last", **changes: Any) -> Task:
    tensors = trainable_tensors(start_model(), tail)
    values: dict[str, Any] = {
        "name": TASK,
        "instance": "0123abcd",
        "tail": tail,
        "tensors": tensors,
        "plan": TrainingPlan("softmax_cross_entropy", 1, 16, 0.1),
        "limits": Limits(largest_update(tensors), 1000),
        "policy": policy,
        "optimizer": OptimizerSettings(),
        "seed": 7,
    }
    return Task(**{**values, **changes})


@dataclass
class Service:
    url: str
    coordinator: Coordinator
    server: Server
    writer: Writer

    def device(self, name: str) -> Device:
        return Device(self.url, name)


@asynccontextmanager
async def service(
    data_dir: Path,
    task: Task | None = None,
    *,
    hold_s: float = 5.0,
    grace_s: float = 5.0,
    identity: Folder | None = None,
) -> AsyncIterator[Service]:
    """Serve `task`, or what the directory holds already; over TLS with an `identity`."""
    if task is not None:
        begin(data_dir, task, start_model(), time.time(), force=False)
    writer = Writer(data_dir / schema.FILE_NAME)
    coordinator = await Coordinator.load(writer)
    server = Server(
        coordinator,
        writer,
        random.Random(1),
        access=Access(identity) if identity else None,
        hold_s=hold_s,
        grace_s=grace_s,
    )
    runner = server.runner()
    await runner.setup()
    context = identity.server_context() if identity else None
    await PatientSite(runner, "127.0.0.1", 0, server.patience, ssl_context=context).start()
    watching = asyncio.create_task(server.patience.run())
    rounds = asyncio.create_task(coordinator.run())
    try:
        port = runner.addresses[0][1]
        scheme = "https" if identity else "http"
        yield Service(f"{scheme}://127.0.0.1:{port}", coordinator, server, writer)
        if rounds.done():
            rounds.result()
    finally:
        server.stop()
        await runner.cleanup()
        rounds.cancel()
        watching.cancel()
        await asyncio.wait({rounds, watching})
        writer.close()


async def blocking(function: Callable[..., T], *args: Any) -> T:
    """Call a device's method beside the event loop, on threads that the aggregator never uses."""
    return await asyncio.get_running_loop().run_in_executor(_DEVICES, lambda: function(*args))


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


def address(running: Service) -> tuple[str, int]:
    host, port = urlsplit(running.url).netloc.split(":")
    return host, int(port)


def head(method: str, path: str, length: int | None) -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/cbor", size]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
