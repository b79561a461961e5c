# SPDX-License-Identifier: Apache-2.0
"""Who gets in: every route, asked by everybody who might try, over real TLS."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedlearn.agent.identity import Identity
from fedlearn.wire import codec
from fedlearn.wire.messages import Certificate, CheckIn, Enrolment, Refusal
from fedlearn_aggregator.identity.authority import Authority, parse_request
from fedlearn_aggregator.identity.folder import Folder, ensure
from fedlearn_aggregator.rounds import Policy
from tests.aggregator.devices import TASK, start_model
from tests.aggregator.service import Service, address, blocking, make_task, service

DAY_S = 86400.0
MODEL = f"/v1/models/{start_model().digest.hex()}"
CHECK_IN = ("POST", "/v1/checkin")
# Of a device that is called board.
UPDATE = ("PUT", "/v1/rounds/1/updates/board")
DEVICE_ROUTES = [("GET", "/v1/task"), ("GET", MODEL), CHECK_IN, UPDATE]
VIEWER_ROUTES = [("GET", "/v1/status"), ("GET", "/metrics")]


@dataclass
class Fleet:
    """A secured aggregator, and what the test has in its hands."""

    folder: Folder
    running: Service
    path: Path

    def identity(self, name: str = "board", where: str = "board") -> Identity:
        directory = self.path / where
        directory.mkdir(exist_ok=True)
        return Identity(directory, name)

    def context(self, identity: Identity | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.folder.ca)
        if identity is not None:
            identity.load_into(context)
        return context

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        identity: Identity | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        host, port = address(self.running)
        connection = http.client.HTTPSConnection(
            host, port, timeout=10, context=self.context(identity)
        )
        sent = {"Content-Type": "application/cbor", **(headers or {})}
        with closing(connection):
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def enrol(
        self, identity: Identity, token: str | None, *, name: str = "board", shown: bool = False
    ) -> int:
        """Enrol, or without a token and with its certificate `shown` renew."""
        body = codec.encode(Enrolment(identity.request(), token))
        path = f"/v1/devices/{name}/certificate"
        status, reply = self.ask("PUT", path, body, identity if shown else None)
        if status == 201:
            identity.take(codec.decode(Certificate, reply, max_bytes=10_000).certificate)
        return status

    def token(self) -> str:
        (token,) = self.folder.registry.add_tokens(1, time.time() + DAY_S, time.time())
        return token


@asynccontextmanager
async def fleet(path: Path) -> AsyncIterator[Fleet]:
    ensure(path / "identity", time.time())
    with closing(Folder.open(path / "identity")) as folder:
        folder.renew_server(time.time())
        task = make_task(Policy(2, 1))
        async with service(path, task, hold_s=0.2, identity=folder) as running:
            yield Fleet(folder, running, path)


def scenario(path: Path, play: Callable[[Fleet], None]) -> None:
    async def run() -> None:
        async with fleet(path) as one:
            await blocking(play, one)

    asyncio.run(asyncio.wait_for(run(), 60))


def body_of(route: tuple[str, str], device: str = "board") -> bytes | None:
    if route == CHECK_IN:
        return codec.encode(CheckIn(TASK, device))
    return b"x" if route[0] == "PUT" else None


def test_a_stranger_gets_nothing(tmp_path: Path) -> None:
    def play(fleet: Fleet) -> None:
        for route in DEVICE_ROUTES:
            status, body = fleet.ask(*route, body_of(route))
            assert status == 401, route
            assert codec.decode(Refusal, body, max_bytes=1000).hint == "enrol with a token first"
        assert fleet.running.coordinator.round.seats == frozenset()

    scenario(tmp_path, play)


def test_an_enrolled_device_gets_in(tmp_path: Path) -> None:
    """The control of all refusals here: the same requests by a device that may."""

    def play(fleet: Fleet) -> None:
        identity = fleet.identity()
        assert fleet.enrol(identity, fleet.token()) == 201
        statuses = [fleet.ask(*route, body_of(route), identity)[0] for route in DEVICE_ROUTES]
        assert statuses == [200, 200, 200, 400]  # the update is no CBOR

    scenario(tmp_path, play)


def test_a_device_speaks_for_itself_alone(tmp_path: Path) -> None:
    def play(fleet: Fleet) -> None:
        identity = fleet.identity("lathe", "lathe")
        assert fleet.enrol(identity, fleet.token(), name="lathe") == 201
        for route in DEVICE_ROUTES[2:]:
            status, _ = fleet.ask(*route, body_of(route, "board"), identity)
            assert status == 403, route
        assert fleet.ask(*CHECK_IN, body_of(CHECK_IN, "lathe"), identity)[0] == 200
        # Nor does it get a certificate for another.
        assert fleet.enrol(fleet.identity("board", "lathe"), None, shown=True) == 403

    scenario(tmp_path, play)


def test_certificates_that_count_no_more(tmp_path: Path) -> None:
    def play(fleet: Fleet) -> None:
        identity, registry = fleet.identity(), fleet.folder.registry
        assert fleet.enrol(identity, fleet.token()) == 201

        def answers() -> set[int]:
            return {fleet.ask(*each, body_of(each), identity)[0] for each in DEVICE_ROUTES}

        def elsewhere(change: Callable[[Folder], None]) -> None:
            with closing(Folder.open(fleet.path / "identity")) as other:
                change(other)

        elsewhere(lambda other: other.registry.block("board", blocked=True))
        assert answers() == {403}
        assert fleet.enrol(identity, None, shown=True) == 403
        elsewhere(lambda other: other.registry.block("board", blocked=False))
        assert answers() == {200, 400}
        elsewhere(lambda other: other.registry.remove("board"))
        assert answers() == {401}
        # Another board has its name by now; the old certificate is not that one's.
        assert fleet.enrol(fleet.identity(where="new"), fleet.token()) == 201
        assert answers() == {401}
        assert fleet.enrol(identity, fleet.token()) == 409
        assert [each.name for each in registry.devices()] == ["board"]

    scenario(tmp_path, play)


def test_an_expired_certificate(tmp_path: Path) -> None:
    def play(fleet: Fleet) -> None:
        identity = fleet.identity()
        assert fleet.enrol(identity, fleet.token()) == 201
        request = parse_request(identity.request(), "board")
        for days, expected in ((364, 200), (366, 401)):
            issued = time.time() - days * DAY_S
            pem, _ = fleet.folder.authority.certify_device(request, "board", issued)
            identity.certificate.write_bytes(pem)
            assert fleet.ask("GET", "/v1/task", None, identity)[0] == expected

    scenario(tmp_path, play)


def test_a_certificate_of_another_ca_or_kind_ends_the_handshake(tmp_path: Path) -> None:
    def play(fleet: Fleet) -> None:
        identity = fleet.identity()
        assert fleet.enrol(identity, fleet.token()) == 201
        request = parse_request(identity.request(), "board")
        foreign, _ = Authority.create(time.time()).certify_device(request, "board", time.time())
        good = identity.certificate.read_bytes()
        identity.certificate.write_bytes(foreign)
        with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
            fleet.ask("GET", "/v1/task", None, identity)
        # The server's own certificate is none of a device.
        server = ssl.create_default_context(cafile=fleet.folder.ca)
        server.load_cert_chain(fleet.folder.path / "server.pem", fleet.folder.path / "server.key")
        host, port = address(fleet.running)
        connection = http.client.HTTPSConnection(host, port, timeout=10, context=server)

        def ask() -> None:
            connection.request("GET", "/v1/task")
            connection.getresponse()

        with closing(connection), pytest.raises((OSError, http.client.HTTPException)):
            ask()
        identity.certificate.write_bytes(good)
        assert fleet.ask("GET", "/v1/task", None, identity)[0] == 200  # the control

    scenario(tmp_path, play)


def test_enrolments_that_are_wrong(tmp_path: Path) -> None:
    def play(fleet: Fleet) -> None:
        identity, token = fleet.identity(), fleet.token()
        request = identity.request()
        path = "/v1/devices/board/certificate"

        def put(body: bytes, path: str = path) -> int:
            return fleet.ask("PUT", path, body)[0]

        assert put(b"") == 400
        assert put(codec.encode(Enrolment(b"\x30\x00", token))) == 422
        tampered = request[:-1] + bytes([request[-1] ^ 1])
        assert put(codec.encode(Enrolment(tampered, token))) == 422
        assert put(codec.encode(Enrolment(request, token)), "/v1/devices/lathe/certificate") == 422
        assert put(codec.encode(Enrolment(request, token)), "/v1/devices/a%20b/certificate") == 422
        assert put(codec.encode(Enrolment(request, token)) + bytes(5000)) == 413
        assert put(codec.encode(Enrolment(request))) == 401  # no token and no certificate
        assert fleet.folder.registry.devices() == []
        assert put(codec.encode(Enrolment(request, token))) == 201  # nothing has used it up

    scenario(tmp_path, play)


def test_a_renewal_keeps_its_key(tmp_path: Path) -> None:
    def play(fleet: Fleet) -> None:
        identity = fleet.identity()
        assert fleet.enrol(identity, fleet.token()) == 201
        assert fleet.enrol(identity, None, shown=True) == 201
        body = codec.encode(Enrolment(fleet.identity(where="other").request()))
        path = "/v1/devices/board/certificate"
        assert fleet.ask("PUT", path, body, identity)[0] == 422

    scenario(tmp_path, play)


def test_the_pages_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Served on loopback they are open; from elsewhere they need the token of the folder."""

    def play(fleet: Fleet) -> None:
        assert [fleet.ask(*route)[0] for route in VIEWER_ROUTES] == [200, 200]
        monkeypatch.setattr("fedlearn_aggregator.identity.access.is_loopback", lambda _: False)
        token = fleet.folder.status_token
        for route in VIEWER_ROUTES:
            assert fleet.ask(*route)[0] == 401
            for wrong in ("", "Bearer", "Bearer x", f"Basic {token}", f"Bearer {token}x"):
                assert fleet.ask(*route, headers={"Authorization": wrong})[0] == 401
            assert fleet.ask(*route, headers={"Authorization": f"Bearer {token}"})[0] == 200
        assert fleet.ask("GET", "/healthz") == (200, b"ok")

    scenario(tmp_path, play)
