# SPDX-License-Identifier: Apache-2.0
"""One persistent HTTP/1.1 connection to the aggregator, over TLS 1.3.

It opens itself when it is needed and once more when the aggregator has dropped it between two
requests; all requests of the protocol may be repeated. Its sockets never block: they wait in
`StopSignal.wait`, as everything in the agent does.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fedlearn.agent.endpoint import Endpoint, refuse_plaintext_beyond_loopback
from fedlearn.agent.stop import StopSignal
from fedlearn.agent.trust import Trust
from fedlearn.errors import ConfigError, NetworkError, ProtocolError
from fedlearn.text import clean
from fedlearn.version import VERSION

CONNECT_TIMEOUT_S = 5.0  # the aggregator is on the LAN: a round trip takes milliseconds
CHUNK_BYTES = 64 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes


class Connection:
    """Requests to one endpoint, one at a time."""

    def __init__(self, endpoint: Endpoint, trust: Trust, stop: StopSignal) -> None:
        self.endpoint = endpoint
        self._http = _Http(endpoint, trust, stop)

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        self._http.close()

    def prove(self, timeout_s: float) -> None:
        """Connect and do the TLS handshake, each wait for `timeout_s` at most; send no request.

        Raises `NetworkError` when the peer does not prove who it is.
        """
        try:
            self._http.be_patient(timeout_s)
        except OSError as error:
            raise _network_error(self.endpoint, error) from error

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
        max_bytes: int,
    ) -> Reply:
        """Send a request and read the whole answer, which may have `max_bytes`."""
        with self.open(method, path, body=body, headers=headers, timeout_s=timeout_s) as response:
            return Reply(response.status, read_body(response, max_bytes, timeout_s))

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and give the response to read from within the `with` block.

        `timeout_s` bounds each wait for bytes. Raises `NetworkError`, `ProtocolError` for what is
        no HTTP, or what `StopSignal.wait` does; and turns what the block meets while it reads into
        the same.
        """
        complete = False
        try:
            response = self._send(method, path, body, headers or {}, timeout_s)
            yield response
            if response.length == 0:  # read1 does not close what it has read to the end
                response.close()
            complete = response.isclosed()
        except OSError as error:
            raise _network_error(self.endpoint, error) from error
        except http.client.HTTPException as error:
            text = clean(error) or type(error).__name__
            raise ProtocolError(f"{self.endpoint} answers with broken HTTP: {text}") from error
        finally:
            if not complete:  # what is left of the answer would be taken for the next one
                self.close()

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> http.client.HTTPResponse:
        """Return the response once its headers are there."""
        everything = {"User-Agent": f"fedlearn/{VERSION}", **headers}
        while True:
            used_before = self._http.sock is not None
            try:
                self._http.be_patient(timeout_s)
                self._http.request(method, path, body, everything)
                return self._http.getresponse()
            except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                self._http.close()
                if not used_before:
                    raise


class _Http(http.client.HTTPConnection):
    """`http.client` on sockets that wait in our hands."""

    sock: _PatientSocket | None

    def __init__(self, endpoint: Endpoint, trust: Trust, stop: StopSignal) -> None:
        super().__init__(endpoint.host, endpoint.port)
        self._endpoint = endpoint
        self._trust = trust
        self._stop = stop
        self._connect_s = CONNECT_TIMEOUT_S

    def be_patient(self, timeout_s: float) -> None:
        """Connect, if need be, and wait so long for the peer from now on."""
        if self.sock is None:
            self._connect_s = min(timeout_s, CONNECT_TIMEOUT_S)
            self.connect()
        assert self.sock is not None
        self.sock.timeout_s = timeout_s

    def connect(self) -> None:
        """Connect to the first address that answers, and do the TLS handshake."""
        # Anew each time: the clock may have been set, the certificate renewed.
        try:
            context = self._trust.context(self._endpoint)
        except ConfigError as error:  # the CA's file was fine once: somebody may be replacing it
            raise NetworkError(error.message, hint=error.hint) from error
        # As bytes: for text the interpreter loads its IDNA tables, a megabyte that no LAN needs.
        host = self.host.encode("ascii") if self.host.isascii() else self.host
        found = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM)
        for at, (family, kind, protocol, _, address) in enumerate(found):
            if context is None:
                refuse_plaintext_beyond_loopback(str(address[0]))
            try:
                self._connect(_PatientSocket(family, kind, protocol), address, context)
                return
            except OSError:
                self.close()
                if at == len(found) - 1:
                    raise
            except BaseException:
                self.close()  # half a connection must not be taken for one
                raise

    def _connect(
        self, plain: _PatientSocket, address: object, context: ssl.SSLContext | None
    ) -> None:
        self.sock = plain
        plain.stop, plain.timeout_s = self._stop, self._connect_s
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.connect(address)
        if context is not None:
            context.sslsocket_class = _TlsSocket
            secured = context.wrap_socket(
                plain, server_hostname=self.host, do_handshake_on_connect=False
            )
            assert isinstance(secured, _TlsSocket)  # the context's sslsocket_class
            self.sock = secured
            secured.stop, secured.timeout_s = self._stop, self._connect_s
            secured.do_handshake()
            self._trust.check_dates(secured)

    def getresponse(self) -> http.client.HTTPResponse:
        """The next answer; one that can be believed tells the time, too."""
        response = super().getresponse()
        if self._endpoint.tls:
            self._trust.clock.hear(response.getheader("Date"))
        return response


class _PatientSocket(socket.socket):
    """A non-blocking socket: what would block waits instead, for at most `timeout_s`."""

    stop: StopSignal
    timeout_s = CONNECT_TIMEOUT_S

    def connect(self, address: Any) -> None:
        code = self.connect_ex(address)
        if code == errno.EINPROGRESS:
            self._wait(time.monotonic() + self.timeout_s, to_write=True)
            code = self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        receive = super().recv_into
        return self.patiently(lambda: receive(buffer, nbytes or 0, flags))

    def sendall(self, data: Any, flags: int = 0) -> None:
        send, left = super().send, memoryview(data).cast("B")
        while left:
            sent = self.patiently(functools.partial(send, left, flags), to_write=True)
            left = left[sent:]

    def patiently(self, action: Callable[[], T], *, to_write: bool = False) -> T:
        """`to_write`: what it waits for if it would block; TLS says itself what it needs."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            self.stop.tick()  # a peer that sends without a pause never makes us wait
            try:
                return action()
            except ssl.SSLWantReadError:
                self._wait(deadline, to_write=False)
            except ssl.SSLWantWriteError:
                self._wait(deadline, to_write=True)
            except BlockingIOError:
                self._wait(deadline, to_write=to_write)

    def _wait(self, deadline: float, *, to_write: bool) -> None:
        left_s = max(0.0, deadline - time.monotonic())
        if to_write:
            happened = self.stop.wait(left_s, writable=[self])
        else:
            happened = self.stop.wait(left_s, self)
        if not happened:
            raise TimeoutError


class _TlsSocket(_PatientSocket, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        self.patiently(super().do_handshake)


def read_body(response: http.client.HTTPResponse, max_bytes: int, timeout_s: float) -> bytes:
    """Read the rest of an answer; raise `ProtocolError` if it has more than `max_bytes`."""
    deadline = time.monotonic() + timeout_s
    body = bytearray()
    while chunk := response.read1(CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise ProtocolError(f"the answer has more than {max_bytes} bytes", status=413)
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:
        raise ConnectionResetError
    return bytes(body)


def _network_error(endpoint: Endpoint, error: OSError) -> NetworkError:
    if isinstance(error, ssl.SSLError):
        return _tls_error(endpoint, error)
    if isinstance(error, socket.gaierror):
        return NetworkError(
            f"{endpoint.host} has no address: {error.strerror}", hint="check aggregator.url"
        )
    if isinstance(error, TimeoutError):
        return NetworkError(f"{endpoint} does not answer in time")
    if isinstance(error, ConnectionRefusedError):
        return NetworkError(f"nothing listens at {endpoint}", hint="is the aggregator running?")
    return NetworkError(f"the connection to {endpoint} broke: {error.strerror or 'closed'}")


def _tls_error(endpoint: Endpoint, error: ssl.SSLError) -> NetworkError:
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "aggregator.ca must be the CA of this aggregator, and the clock must be right"
        if "mismatch" in error.verify_message:
            hint = "aggregator.url must have a host that the certificate names"
        return NetworkError(
            f"{endpoint} cannot prove who it is: {clean(error.verify_message)}", hint=hint
        )
    return NetworkError(
        f"no TLS with {endpoint}: {clean(error.reason or error)}",
        hint="the aggregator must speak TLS 1.3",
    )
