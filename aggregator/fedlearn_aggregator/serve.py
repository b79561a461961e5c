# SPDX-License-Identifier: Apache-2.0
"""The `serve` process: from the lock on the data directory to a clean end."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import random
import resource
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from fedlearn.agent.endpoint import Endpoint, refuse_plaintext_beyond_loopback
from fedlearn.dataset import Dataset
from fedlearn.durable import write_durably
from fedlearn.errors import ConfigError, ExitCode, FedlearnError, NetworkError
from fedlearn.notify import Notifier
from fedlearn_aggregator import schema
from fedlearn_aggregator.advertise import advertised
from fedlearn_aggregator.checkins import HOLD_S
from fedlearn_aggregator.coordinator import Coordinator
from fedlearn_aggregator.evaluation import Evaluator
from fedlearn_aggregator.identity.access import Access, is_loopback
from fedlearn_aggregator.identity.folder import NAME, Folder
from fedlearn_aggregator.lock import exclusive
from fedlearn_aggregator.patience import Patience, PatientSite
from fedlearn_aggregator.server import Server
from fedlearn_aggregator.writer import Writer

SERVE_FILE = "serve.json"
# Each device that waits holds a connection, and a fleet comes back all at once after a restart.
OPEN_FILES = 8192
BACKLOG = 1024
# What `systemctl status` shows is at most so old.
STATUS_EVERY_S = 5.0
# `devices list` is at most so old.
SEEN_EVERY_S = 60.0
# Its certificate has a month left by then, and a machine may get another address.
RENEW_EVERY_S = 3600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve. `interfaces` are for mDNS, None turns it off."""

    data_dir: Path
    host: str
    port: int
    insecure: bool = False
    interfaces: tuple[str, ...] | None = ()
    evaluate: Path | None = None
    exit_when_done: bool = False
    hold_s: float = HOLD_S


async def serve(
    options: ServeOptions, announce: Callable[[str], None], notifier: Notifier | None = None
) -> ExitCode:
    """Serve until SIGINT, SIGTERM or, if asked for, the end of the task.

    `announce` gets the URL once requests are taken. Raises ConfigError, NetworkError or
    StorageError when serving cannot begin.
    """
    notifier = notifier or Notifier()
    schema.require(options.data_dir / schema.FILE_NAME)
    host = await _address(options.host, tls=not options.insecure)
    interfaces = _interfaces(options)
    stop = _stop_on_signals()
    _allow_open_files()
    async with AsyncExitStack() as stack:
        stack.enter_context(exclusive(options.data_dir))
        identity, context = None, None
        if not options.insecure:
            identity = stack.enter_context(closing(Folder.open(options.data_dir / NAME)))
            identity.renew_server(time.time())
            context = identity.server_context()
        writer = Writer(options.data_dir / schema.FILE_NAME)
        stack.callback(writer.close)
        coordinator = await Coordinator.load(writer)
        evaluator = None
        if options.evaluate is not None:
            loss = coordinator.task.plan.loss
            dataset = Dataset.load(options.evaluate, coordinator.model, loss)
            evaluator = Evaluator(dataset, loss, writer)
            coordinator.on_model = evaluator.submit
            await stack.enter_async_context(_running(evaluator.run()))
        access = None if identity is None else Access(identity)
        server = Server(
            coordinator, writer, random.SystemRandom(), access=access, hold_s=options.hold_s
        )
        if identity is not None and access is not None and context is not None:
            await stack.enter_async_context(_running(_keep(identity, access, context)))
        await stack.enter_async_context(_running(server.patience.run()))
        runner = server.runner()
        stack.push_async_callback(runner.cleanup)
        port = await _listen(runner, server.patience, host, options.port, context)
        url = str(Endpoint(host, port, tls=context is not None))
        stack.enter_context(_serve_file(options.data_dir, url, coordinator.task.name))
        if interfaces is not None:
            await stack.enter_async_context(
                advertised(
                    coordinator.task,
                    host,
                    port,
                    tls=context is not None,
                    interfaces=interfaces,
                )
            )
        stack.callback(server.stop)
        announce(url)
        # The store is open, its round goes on, and requests are taken.
        notifier.ready()
        stack.callback(notifier.stopping)
        await stack.enter_async_context(_running(_tell(notifier, coordinator)))
        _log.info("round %d is %s", coordinator.round.number, coordinator.round.state)
        rounds = await stack.enter_async_context(_running(coordinator.run()))
        broken = asyncio.wrap_future(writer.broken)
        ended = _until_done(rounds, stop, broken, evaluator, forever=not options.exit_when_done)
        return await ended


async def _keep(identity: Folder, access: Access, context: ssl.SSLContext) -> None:
    """Renew the server's certificate in time, and note which devices are heard of."""
    renew_s = time.monotonic() + RENEW_EVERY_S
    try:
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            try:
                await access.note_seen()
                if time.monotonic() >= renew_s:
                    renew_s = time.monotonic() + RENEW_EVERY_S
                    if await asyncio.to_thread(identity.renew_server, time.time()):
                        identity.load_server(context)
                        _log.info("the server has a new certificate")
            except FedlearnError as error:  # a full disk: the next try may find room
                _log.error("%s", error)
    finally:
        with suppress(FedlearnError):
            await access.note_seen()


async def _tell(notifier: Notifier, coordinator: Coordinator) -> None:
    """Show how the rounds go, and that the event loop goes round."""
    while True:
        if notifier.watchdog_s is not None:
            notifier.alive()
        notifier.status(_headline(coordinator))
        await asyncio.sleep(min(notifier.watchdog_s or STATUS_EVERY_S, STATUS_EVERY_S))


def _headline(coordinator: Coordinator) -> str:
    current = coordinator.round
    if coordinator.finished:
        return "the task is finished"
    line = f"round {current.number} is {current.state}: {len(current.updates)} updates"
    return f"{line}; {coordinator.trouble}" if coordinator.trouble else line


async def _until_done(
    rounds: asyncio.Task[None],
    stop: asyncio.Future[signal.Signals],
    broken: asyncio.Future[None],
    evaluator: Evaluator | None,
    *,
    forever: bool,
) -> ExitCode:
    """Raises what `rounds` or `broken` raise: a supervisor shall start the process anew."""
    await _first(rounds, stop, broken)
    if rounds.done():
        rounds.result()
        _log.info("the task is finished")
        if forever:
            await _first(stop, broken)
        elif evaluator is not None:
            drained = asyncio.create_task(evaluator.drain())
            await _first(drained, stop, broken)
            drained.cancel()
    if stop.done():
        _log.info("stopping on %s", stop.result().name)
        return ExitCode.INTERRUPTED if stop.result() is signal.SIGINT else ExitCode.OK
    if broken.done():
        broken.result()
    return ExitCode.OK


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _interfaces(options: ServeOptions) -> tuple[str, ...] | None:
    """Where to publish. Without TLS that is loopback: nobody else could use it."""
    if not options.insecure or options.interfaces is None:
        return options.interfaces
    for each in options.interfaces:
        try:
            elsewhere = each != "lo" and not is_loopback(each)
        except ValueError:  # another name
            elsewhere = True
        if elsewhere:
            raise ConfigError(
                f"--insecure publishes on loopback alone, not on {each}",
                hint="leave --interface out, or serve without --insecure",
            )
    return options.interfaces or ("127.0.0.1",)


async def _address(host: str, *, tls: bool) -> str:
    """The IP address to listen on."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NetworkError(f"{host}: {error.strerror}", hint="check --host") from error
    address = str(found[0][4][0])
    if not tls:
        refuse_plaintext_beyond_loopback(address)
    return address


async def _listen(
    runner: web.AppRunner,
    patience: Patience,
    host: str,
    port: int,
    context: ssl.SSLContext | None,
) -> int:
    """Start to take requests; returns the port."""
    await runner.setup()
    try:
        site = PatientSite(runner, host, port, patience, ssl_context=context, backlog=BACKLOG)
        await site.start()
    except (OSError, OverflowError) as error:
        code = getattr(error, "errno", None)
        reason, hint = {
            errno.EADDRINUSE: ("is in use", "stop the other program, or choose another --port"),
            errno.EACCES: ("needs privileges", "choose a --port above 1023"),
            errno.EADDRNOTAVAIL: ("is no address of this machine", "check --host"),
        }.get(code or 0, (f"cannot be listened on: {error}", "check --host and --port"))
        raise NetworkError(f"{host} port {port} {reason}", hint=hint) from error
    return int(runner.addresses[0][1])


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _stop_on_signals() -> asyncio.Future[signal.Signals]:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[signal.Signals] = loop.create_future()

    def stopped(number: signal.Signals) -> None:
        if not stop.done():
            stop.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped, number)
    return stop


@asynccontextmanager
async def _running(coroutine: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run a task that ends with the context."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


@contextmanager
def _serve_file(data_dir: Path, url: str, task: str) -> Iterator[None]:
    """Tell scripts where we listen, for as long as we do."""
    path = data_dir / SERVE_FILE
    told = {"url": url, "pid": os.getpid(), "task": task}
    write_durably(path, (json.dumps(told) + "\n").encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
