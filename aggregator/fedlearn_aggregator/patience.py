# SPDX-License-Identifier: Apache-2.0
"""How long the server waits for a peer that is slow, or wants it to wait.

A connection costs memory and a file descriptor. So whoever has one must get on with it: complete
the TLS handshake and the head of a request within seconds, send a body and take an answer at the
speed of a modem, and come back within the keep-alive time. A held check-in waits for us, and is no
slow peer.

`Guard` stands between asyncio and the protocol of HTTP, and sees bytes alone; the server tells
`Patience` when a request is handled. HTTP itself stays with aiohttp.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from enum import Enum, auto
from typing import cast

from aiohttp import web

# Milliseconds on a LAN, a second for a slow board. One comes after the other.
HANDSHAKE_S = 5.0
HEAD_S = 8.0
# In bytes/s. The slowest link that we serve is a 2G modem of some 10 kB/s, on a bad day.
LEAST_RATE = 1000.0
# A body or an answer may stand still so long before its rate counts.
GRACE_S = 10.0
# Above the longest hold and jitter of a check-in, so that a waiting device keeps its connection.
KEEP_ALIVE_S = 75.0
# After an answer that came before the end of the body, for the peer to see it.
LINGER_S = 2.0
LOOK_S = 1.0


class Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()  # the peer, to complete the head of a request
    HANDLING = auto()  # us, or a body that `Server` reads and times itself
    IDLE = auto()  # the next request


class Patience:
    """Knows all connections, and ends those that are too slow. `run` it beside the server."""

    def __init__(self) -> None:
        self.cut = 0  # connections ended for it
        self._guards: dict[asyncio.BaseTransport, Guard] = {}

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._guards)

    def guard(self, inner: asyncio.Protocol) -> Guard:
        """The protocol for a new connection, in front of the server's own."""
        return Guard(inner, self._guards)

    def handling(self, transport: asyncio.BaseTransport | None) -> None:
        """The head of a request is complete."""
        self._enter(transport, Phase.HANDLING)

    def handled(self, transport: asyncio.BaseTransport | None) -> None:
        """Its answer is on the way."""
        self._enter(transport, Phase.IDLE)

    def _enter(self, transport: asyncio.BaseTransport | None, phase: Phase) -> None:
        guard = self._guards.get(transport) if transport is not None else None
        if guard is not None:
            guard.enter(phase, _now())

    def look(self, now_s: float) -> None:
        """End what has been too slow by now, in the loop's seconds."""
        for guard in list(self._guards.values()):
            if guard.is_too_slow(now_s):
                self.cut += 1
                guard.abort()

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look(_now())


class Guard(asyncio.Protocol):
    """Passes everything on, and keeps the time."""

    def __init__(self, inner: asyncio.Protocol, guards: dict[asyncio.BaseTransport, Guard]) -> None:
        self._inner = inner
        self._guards = guards
        self._transport: asyncio.Transport | None = None
        self._phase = Phase.HEAD
        self._since_s = 0.0
        self._unsent, self._unsent_since_s = 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """With TLS, after the handshake."""
        self._transport = cast(asyncio.Transport, transport)
        self._guards[transport] = self
        self._since_s = _now()
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        if self._transport is not None:
            self._guards.pop(self._transport, None)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The first bytes after an answer begin the next head."""
        if self._phase is Phase.IDLE:
            self.enter(Phase.HEAD, _now())
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """The peer sends no more."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """The peer takes no more for now."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._inner.resume_writing()

    def enter(self, phase: Phase, now_s: float) -> None:
        """Begin to wait for something else."""
        self._phase, self._since_s = phase, now_s

    def is_too_slow(self, now_s: float) -> bool:
        """Whether patience has ended."""
        unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if unsent and self._phase is Phase.IDLE:
            self._since_s = now_s  # it has the whole time from the end of the answer on
        limit_s = {Phase.HEAD: HEAD_S, Phase.IDLE: KEEP_ALIVE_S}.get(self._phase)
        if limit_s is not None and now_s - self._since_s > limit_s:
            return True
        return self._takes_too_slowly(unsent, now_s)

    def _takes_too_slowly(self, unsent: int, now_s: float) -> bool:
        """Whether of what we have for the peer too little went out within the last grace time."""
        if not unsent or unsent > self._unsent:
            self._unsent, self._unsent_since_s = unsent, now_s
        elif now_s - self._unsent_since_s >= GRACE_S:
            taken = self._unsent - unsent
            self._unsent, self._unsent_since_s = unsent, now_s
            return taken < LEAST_RATE * GRACE_S
        return False

    def abort(self) -> None:
        """End the connection without a word."""
        if self._transport is not None:
            self._transport.abort()


class PatientSite(web.BaseSite):
    """Takes connections for the runner's server, each with a guard."""

    def __init__(
        self,
        runner: web.AppRunner,
        host: str,
        port: int,
        patience: Patience,
        *,
        ssl_context: ssl.SSLContext | None = None,
        backlog: int = 128,
    ) -> None:
        super().__init__(runner, ssl_context=ssl_context, backlog=backlog)
        self._host, self._port, self._patience = host, port, patience

    @property
    def name(self) -> str:
        """The URL."""
        scheme = "https" if self._ssl_context else "http"
        return f"{scheme}://{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen. Raises OSError."""
        await super().start()
        server = self._runner.server
        assert server is not None
        make = cast(Callable[[], asyncio.Protocol], server)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: self._patience.guard(make()),
            self._host,
            self._port,
            ssl=self._ssl_context,
            backlog=self._backlog,
            ssl_handshake_timeout=HANDSHAKE_S if self._ssl_context else None,
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
