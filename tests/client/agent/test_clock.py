# SPDX-License-Identifier: Apache-2.0
"""The time on a board without a clock: what must be past, and whose certificate has expired."""

from __future__ import annotations

import email.utils
import socket
import ssl
import time
from pathlib import Path

import pytest

from fedlearn.agent.clock import Clock
from fedlearn.agent.connection import Connection
from fedlearn.agent.endpoint import Endpoint
from fedlearn.agent.stop import StopSignal
from fedlearn.agent.transport import check_in
from fedlearn.agent.trust import Trust
from fedlearn.errors import NetworkError
from fedlearn.wire.messages import CheckIn, Wait
from fedlearn_aggregator.identity.authority import CA_DAYS, SERVER_DAYS, Authority

from .scripted import Server, message, serving

DAY_S = 86400.0
CHECK_IN = CheckIn("digits", "board")
WAIT = Wait(1.5, "no free seat")


def test_it_is_never_before_what_is_known() -> None:
    clock = Clock()
    clock.learn(time.time() - 1000)
    assert abs(clock.now() - time.time()) < 1
    later = time.time() + 10_000
    clock.learn(later)
    assert clock.is_behind
    assert later <= clock.now() < later + 1
    clock.learn(later - 5000)  # nothing is forgotten
    assert clock.now() >= later


def test_it_goes_on_from_what_it_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    base = time.clock_gettime(time.CLOCK_BOOTTIME)
    clock.learn(time.time() + 10_000)
    before = clock.now()
    monkeypatch.setattr(time, "clock_gettime", lambda _: base + 500)
    assert 499 < clock.now() - before < 501


@pytest.mark.parametrize("date", [None, "", "yesterday", "Fri, 99 Foo 2026 00:00:00 GMT"])
def test_what_is_no_date_is_ignored(date: str | None) -> None:
    clock = Clock()
    clock.hear(date)
    assert not clock.is_behind


def test_a_date_is_heard() -> None:
    clock = Clock()
    clock.hear(email.utils.formatdate(time.time() + 5000, usegmt=True))
    assert clock.is_behind


def server_context(authority: Authority, folder: Path, now: float) -> ssl.SSLContext:
    certificate, key = authority.certify_server(["127.0.0.1"], now)
    (folder / "server.pem").write_bytes(certificate)
    (folder / "server.key").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context


def ask(server: Server, ca: Path, clock: Clock | None = None) -> object:
    endpoint = Endpoint("127.0.0.1", server.port, named=True)
    connection = Connection(endpoint, Trust(ca, None, clock or Clock()), StopSignal())
    try:
        return check_in(connection, CHECK_IN)
    finally:
        connection.close()


def test_a_board_whose_clock_is_behind_the_ca(tmp_path: Path) -> None:
    """For it all of it is of the future: here that of a year from now."""
    now = time.time() + 365 * DAY_S
    authority = Authority.create(now)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    with serving(lambda _: message(WAIT), server_context(authority, tmp_path, now)) as server:
        # The control: by the system's clock alone nothing of it is valid yet.
        plain = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
            handshake(plain, server.port)
        assert ask(server, tmp_path / "ca.pem") == WAIT
        # And what is known to be past may tell that it has expired.
        clock = Clock()
        clock.learn(now + (SERVER_DAYS + 1) * DAY_S)
        seen = len(server.requests)
        with pytest.raises(NetworkError, match="expired"):
            ask(server, tmp_path / "ca.pem", clock)
        assert len(server.requests) == seen


def handshake(context: ssl.SSLContext, port: int) -> None:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1"),
    ):
        pass


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    authority = Authority.create(time.time() - 1000 * DAY_S)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    old = server_context(authority, tmp_path, time.time() - (SERVER_DAYS + 1) * DAY_S)
    with serving(lambda _: message(WAIT), old) as server:
        with pytest.raises(NetworkError, match="expired"):
            ask(server, tmp_path / "ca.pem")
        assert server.requests == []
    new = server_context(authority, tmp_path, time.time())
    with serving(lambda _: message(WAIT), new) as server:
        assert ask(server, tmp_path / "ca.pem") == WAIT


def test_an_expired_ca_is_refused(tmp_path: Path) -> None:
    authority = Authority.create(time.time() - (CA_DAYS + 1) * DAY_S)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    context = server_context(authority, tmp_path, time.time())
    with serving(lambda _: message(WAIT), context) as server:
        with pytest.raises(NetworkError, match="expired"):
            ask(server, tmp_path / "ca.pem")
        assert server.requests == []
