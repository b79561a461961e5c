# SPDX-License-Identifier: Apache-2.0
"""An HTTP server on loopback that does what a test says, also what no decent server does."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fedlearn.agent.endpoint import Endpoint
from fedlearn.wire import codec
from fedlearn.wire.messages import Message

CBOR = {"Content-Type": "application/cbor"}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int  # which of the server's connections, from 1


def answer(status: int, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    head = {"Content-Length": str(len(body)), **(headers or {})}
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def message(content: Message, status: int = 200) -> bytes:
    return answer(status, codec.encode(content), CBOR)


@dataclass
class Server:
    """`script` gives the raw bytes of an answer; None drops the connection."""

    script: Callable[[Request], bytes | None]
    context: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)
    port: int = 0
    connections: list[socket.socket] = field(default_factory=list)

    def hang_up(self) -> None:
        """Break all connections, in the middle of whatever they do."""
        for each in self.connections:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port, self.context is not None)

    def wait_for(self, matches: Callable[[Request], bool], count: int = 1) -> Request:
        """Wait until `count` matching requests have come; return the last of them."""

        def found() -> list[Request]:
            return [each for each in self.requests if matches(each)]

        with self.arrived:
            assert self.arrived.wait_for(lambda: len(found()) >= count, timeout=8), self.requests
            return found()[count - 1]


@contextlib.contextmanager
def serving(
    script: Callable[[Request], bytes | None], context: ssl.SSLContext | None = None
) -> Iterator[Server]:
    server = Server(script, context)
    listener = socket.create_server(("127.0.0.1", 0))
    server.port = listener.getsockname()[1]

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            server.connections.append(connection)
            number = len(server.connections)
            threading.Thread(target=_serve, args=(server, connection, number), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        for each in (listener, *server.connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def _serve(server: Server, plain: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        connection = stack.enter_context(plain)
        if server.context:
            connection = stack.enter_context(server.context.wrap_socket(plain, server_side=True))
        stream = stack.enter_context(connection.makefile("rb"))
        while line := stream.readline():
            method, path, _ = line.decode().split()
            headers = {}
            while (header := stream.readline().decode().strip()) != "":
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            body = stream.read(int(headers.get("content-length", 0)))
            request = Request(method, path, headers, body, number)
            with server.arrived:
                server.requests.append(request)
                server.arrived.notify_all()
            reply = server.script(request)
            if reply is None:
                return
            connection.sendall(reply)
