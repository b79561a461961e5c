# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedlearn.agent.connection import Connection
from fedlearn.agent.download import Download, download_model
from fedlearn.agent.endpoint import Endpoint, refuse_plaintext_beyond_loopback
from fedlearn.agent.state import Models
from fedlearn.agent.stop import Stopped, StopSignal
from fedlearn.agent.transport import Delivery, RefusedError, check_in, send_update
from fedlearn.agent.trust import Trust, check_ca
from fedlearn.errors import ConfigError, FedlearnError, NetworkError, ProtocolError, StorageError
from fedlearn.version import VERSION
from fedlearn.wire import codec
from fedlearn.wire.messages import (
    CheckIn,
    Limits,
    Receipt,
    Refusal,
    TaskDescriptor,
    TrainingPlan,
    Wait,
)

from .certificates import make_authority
from .scripted import CBOR, Request, Server, answer, message, serving

MODEL = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(MODEL).digest()
CHECK_IN = CheckIn("digits", "board")
WAIT = Wait(1.5, "no free seat")


def connect(server: Server, ca: Path | None = None, stop: StopSignal | None = None) -> Connection:
    return Connection(server.endpoint, Trust(ca), stop or StopSignal())


@contextmanager
def connected(script: Callable[[Request], bytes | None]) -> Iterator[tuple[Server, Connection]]:
    with serving(script) as server:
        connection = connect(server)
        yield server, connection
        connection.close()


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


def fetch(
    connection: Connection, models: Models, size: int = len(MODEL), base: bytes | None = None
) -> Download:
    deadline = time.monotonic() + 5
    return download_model(connection, models, DIGEST, size, base=base, deadline=deadline)


def descriptor(task: str) -> bytes:
    plan = TrainingPlan("softmax_cross_entropy", 1, 8, 0.1)
    return message(TaskDescriptor(task, 1, "open", DIGEST, 1, 1, (), plan, Limits(1, 1)))


def of_task(task: str, reply: bytes) -> Callable[[Request], bytes]:
    """An aggregator of the task that gives `reply` to all that is not the question for its task."""
    return lambda request: descriptor(task) if request.path == "/v1/task" else reply


# The connection.


def test_one_connection_serves_all_requests() -> None:
    with connected(lambda _: message(WAIT)) as (server, connection):
        for _ in range(3):
            assert check_in(connection, CHECK_IN) == WAIT
        first = server.requests[0]
        assert [each.connection for each in server.requests] == [1, 1, 1]
        assert (first.method, first.path) == ("POST", "/v1/checkin")
        assert first.headers["user-agent"] == f"fedlearn/{VERSION}"
        assert first.headers["content-type"] == "application/cbor"
        assert codec.decode(CheckIn, first.body, max_bytes=1000) == CHECK_IN


def test_a_dropped_keep_alive_connection_is_opened_again() -> None:
    def script(request: Request) -> bytes | None:
        return None if request.connection == 1 and len(server.requests) == 2 else message(WAIT)

    with connected(script) as (server, connection):
        assert check_in(connection, CHECK_IN) == WAIT
        assert check_in(connection, CHECK_IN) == WAIT
        assert [each.connection for each in server.requests] == [1, 1, 2]


def test_a_fresh_connection_that_is_dropped_is_an_error() -> None:
    with connected(lambda _: None) as (server, connection):
        with pytest.raises(NetworkError, match="broke"):
            check_in(connection, CHECK_IN)
        assert len(server.requests) == 1


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    connection = Connection(Endpoint("127.0.0.1", port, tls=False), Trust(), StopSignal())
    with pytest.raises(NetworkError, match=f"nothing listens at http://127.0.0.1:{port}"):
        check_in(connection, CHECK_IN)


def test_a_silent_peer_times_out() -> None:
    release = threading.Event()

    def script(_: Request) -> bytes | None:
        release.wait(5)
        return None

    with connected(script) as (_, connection):
        with pytest.raises(NetworkError, match="does not answer in time"):
            check_in(connection, CHECK_IN, timeout_s=0.1)
        release.set()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        answer(200, bytes(70_000), CBOR),
        answer(200, b"no CBOR", CBOR),
        answer(204, b""),
        message(Receipt(1, False)),
    ],
)
def test_nonsense_is_a_protocol_error_and_the_next_request_is_clean(raw: bytes) -> None:
    replies = [raw, message(WAIT)]
    with connected(lambda _: replies.pop(0)) as (_, connection):
        with pytest.raises(ProtocolError):
            check_in(connection, CHECK_IN)
        assert check_in(connection, CHECK_IN) == WAIT


def test_a_body_that_breaks_off_is_a_network_error() -> None:
    def script(request: Request) -> bytes | None:
        whole = message(WAIT)
        return None if request.connection > 1 else whole[:-3]

    with serving(script) as server:
        connection = connect(server)

        def hang_up() -> None:
            server.wait_for(lambda _: True)
            server.hang_up()

        threading.Thread(target=hang_up).start()
        with pytest.raises(NetworkError):
            check_in(connection, CHECK_IN, timeout_s=2)


def test_refusals_carry_their_reason_cleaned() -> None:
    refusal = Refusal("no such\x1b[31m task\n" + "x" * 500, "ask")
    with (
        connected(lambda _: message(refusal, 404)) as (_, connection),
        pytest.raises(RefusedError) as caught,
    ):
        check_in(connection, CHECK_IN)
    assert caught.value.status == 404
    assert "no such [31m task" in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.hint == "ask"


# A stop request.


def test_a_stop_ends_a_long_poll_at_once() -> None:
    stop, release = StopSignal(), threading.Event()

    def script(_: Request) -> bytes | None:
        release.wait(8)
        return None

    with serving(script) as server:
        connection = connect(server, stop=stop)
        previous = signal.signal(signal.SIGUSR1, lambda *_: stop.request())
        try:
            main = threading.get_ident()

            def interrupt() -> None:
                server.wait_for(lambda _: True)
                signal.pthread_kill(main, signal.SIGUSR1)

            threading.Thread(target=interrupt).start()
            start = time.monotonic()
            with pytest.raises(Stopped):
                check_in(connection, CHECK_IN)
            assert time.monotonic() - start < 5
        finally:
            signal.signal(signal.SIGUSR1, previous)
            release.set()


def test_a_stop_ends_an_attempt_to_connect() -> None:
    """A full backlog leaves the client's SYN without an answer, like a host that is off."""
    stop = StopSignal()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with socket.create_connection(address), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(address)
            endpoint = Endpoint("127.0.0.1", address[1], tls=False)
            connection = Connection(endpoint, Trust(), stop)
            previous = signal.signal(signal.SIGALRM, lambda *_: stop.request())
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                start = time.monotonic()
                with pytest.raises(Stopped):
                    check_in(connection, CHECK_IN)
                assert 0.1 < time.monotonic() - start < 3
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, previous)


# Trust.


def test_plain_http_is_for_loopback_only() -> None:
    for address in ("127.0.0.1", "127.8.8.8", "::1"):
        refuse_plaintext_beyond_loopback(address)
    for address in ("192.0.2.1", "0.0.0.0", "fe80::1%eth0", "::"):
        with pytest.raises(NetworkError, match="no loopback address"):
            refuse_plaintext_beyond_loopback(address)
    connection = Connection(Endpoint("192.0.2.1", 80, tls=False), Trust(), StopSignal())
    with pytest.raises(NetworkError, match="no loopback address"):
        check_in(connection, CHECK_IN)


def test_tls_with_the_right_ca(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "ca")
    with serving(lambda _: message(WAIT), authority.server_context()) as server:
        connection = connect(server, authority.file)
        assert check_in(connection, CHECK_IN) == WAIT
        assert check_in(connection, CHECK_IN) == WAIT
        assert [each.connection for each in server.requests] == [1, 1]
        connection.close()


def test_no_byte_for_an_aggregator_that_cannot_prove_itself(tmp_path: Path) -> None:
    ours, theirs = make_authority(tmp_path / "ours"), make_authority(tmp_path / "theirs")
    old = ours.server_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    cases = [
        (theirs.server_context(), True, "cannot prove who it is"),  # a foreign CA
        (ours.server_context("DNS:other"), True, "cannot prove who it is"),  # another's name
        (ours.server_context(usage="client"), False, "cannot prove who it is"),  # a device's
        (old, True, "no TLS with"),
    ]
    for context, named, complaint in cases:
        with serving(lambda _: message(WAIT), context) as server:
            endpoint = Endpoint("127.0.0.1", server.port, named=named)
            with pytest.raises(NetworkError, match=complaint):
                check_in(Connection(endpoint, Trust(ours.file), StopSignal()), CHECK_IN)
            assert server.requests == []


def test_a_host_from_mdns_needs_no_name_in_its_certificate(tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "ca")
    with serving(lambda _: message(WAIT), authority.server_context("DNS:other")) as server:
        endpoint = Endpoint("127.0.0.1", server.port, named=False)
        connection = Connection(endpoint, Trust(authority.file), StopSignal())
        assert check_in(connection, CHECK_IN) == WAIT


def test_a_ca_file_that_goes_away_is_a_matter_of_the_connection(tmp_path: Path) -> None:
    """It may be in the middle of being replaced; the agent must not fall over it."""
    authority = make_authority(tmp_path / "ca")
    with serving(lambda _: message(WAIT), authority.server_context()) as server:
        connection = connect(server, authority.file)
        assert check_in(connection, CHECK_IN) == WAIT
        connection.close()
        kept = authority.file.read_bytes()
        authority.file.unlink()
        with pytest.raises(NetworkError, match=r"aggregator\.ca"):
            check_in(connection, CHECK_IN)
        authority.file.write_bytes(kept)
        assert check_in(connection, CHECK_IN) == WAIT
        connection.close()


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot use aggregator\.ca"):
        check_ca(tmp_path / "none.pem")
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(ConfigError, match=r"cannot use aggregator\.ca"):
        check_ca(tmp_path / "text.pem")


# Updates.


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (message(Receipt(3, False), 201), Delivery.STORED),
        (message(Receipt(3, True), 200), Delivery.STORED),
        (message(Refusal("other bytes", ""), 409), Delivery.CONFLICT),
        (message(Refusal("closed", ""), 410), Delivery.ROUND_OVER),
        (message(Refusal("round 3 has not begun", ""), 404), Delivery.NOT_BEGUN),
        (message(Refusal("the norm is too large", ""), 422), RefusedError),
        (message(Refusal("too large", ""), 413), RefusedError),
        (message(Refusal("disk full", ""), 507), NetworkError),
        (message(Refusal("who are you?", ""), 403), NetworkError),
        (message(Refusal("later", ""), 429), NetworkError),
        (message(Receipt(4, False), 201), NetworkError),
        (answer(201, b""), ProtocolError),
        (answer(502, b"<html>a proxy"), NetworkError),
        *((answer(status, b"<html>"), NetworkError) for status in (400, 404, 409, 410, 413, 422)),
        (answer(404, codec.encode(Receipt(3, False)), CBOR), NetworkError),
        (answer(201, bytes(70_000)), ProtocolError),
    ],
)
def test_what_becomes_of_an_update(reply: bytes, outcome: Delivery | type[FedlearnError]) -> None:
    """Only a refusal for good may cost the update; whatever is unclear must not."""
    with connected(of_task("digits", reply)) as (server, connection):
        if isinstance(outcome, Delivery):
            assert send_update(connection, "digits", 3, "board", b"body") is outcome
        else:
            with pytest.raises(outcome) as caught:
                send_update(connection, "digits", 3, "board", b"body")
            assert type(caught.value) is outcome
        request = server.requests[0]
        assert (request.method, request.path) == ("PUT", "/v1/rounds/3/updates/board")
        assert request.body == b"body"


@pytest.mark.parametrize("status", [400, 404, 409, 410, 413, 422])
def test_a_refusal_counts_only_from_an_aggregator_of_the_task(status: int) -> None:
    reply = message(Refusal("no", ""), status)
    for script, complaint in (
        (of_task("other", reply), "of task other, not of digits"),
        (lambda request: reply if request.method == "PUT" else None, "broke"),
    ):
        with (
            connected(script) as (_, connection),
            pytest.raises(NetworkError, match=complaint),
        ):
            send_update(connection, "digits", 3, "board", b"body")


# Models.


def ranged(request: Request, data: bytes = MODEL) -> bytes:
    """Answer as an aggregator does."""
    wanted = request.headers.get("range")
    if wanted is None or request.headers.get("if-range") != f'"{DIGEST.hex()}"':
        return answer(200, data, {"ETag": f'"{DIGEST.hex()}"'})
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    return answer(
        206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
    )


def test_a_model_arrives_whole(models: Models) -> None:
    with connected(ranged) as (server, connection):
        assert fetch(connection, models) == Download(len(MODEL))
        assert server.requests[0].path == f"/v1/models/{DIGEST.hex()}"
    assert models.file(DIGEST).read_bytes() == MODEL
    assert not models.partial(DIGEST).exists()


def test_a_download_goes_on_where_it_broke_off(models: Models) -> None:
    def script(request: Request) -> bytes | None:
        if len(server.requests) > 1:
            return ranged(request)
        head, _, body = ranged(request).partition(b"\r\n\r\n")
        threading.Timer(0.2, server.hang_up).start()
        return head + b"\r\n\r\n" + body[:100_000]

    with connected(script) as (server, connection):
        with pytest.raises(NetworkError, match="broke"):
            fetch(connection, models, base=bytes(32))
        assert models.partial(DIGEST).stat().st_size == 100_000
        assert fetch(connection, models, base=bytes(32)) == Download(len(MODEL) - 100_000)
        assert server.requests[0].path.endswith(f"?from={bytes(32).hex()}")
        assert server.requests[1].headers["range"] == "bytes=100000-"
        assert "?" not in server.requests[1].path
    assert models.has(DIGEST)


def test_a_server_that_ignores_the_range_starts_anew(models: Models) -> None:
    models.partial(DIGEST).write_bytes(b"of another time")
    with connected(lambda _: answer(200, MODEL)) as (_, connection):
        assert fetch(connection, models) == Download(len(MODEL))
    assert models.has(DIGEST)


def test_a_complete_part_needs_no_request(models: Models) -> None:
    models.partial(DIGEST).write_bytes(MODEL)
    with connected(lambda _: None) as (server, connection):
        assert fetch(connection, models) == Download(0)
        assert server.requests == []
    assert models.has(DIGEST)


def test_a_damaged_part_is_dropped_and_comes_again(models: Models) -> None:
    models.partial(DIGEST).write_bytes(bytes(500))  # zeros, as after a power cut
    with connected(ranged) as (_, connection):
        with pytest.raises(ProtocolError, match="another SHA-256"):
            fetch(connection, models)
        assert not models.file(DIGEST).exists()
        assert fetch(connection, models) == Download(len(MODEL))


@pytest.mark.parametrize(
    ("reply", "size", "complaint"),
    [
        (answer(200, MODEL[:-1] + b"x"), len(MODEL), "another SHA-256"),
        (answer(200, MODEL), len(MODEL) - 1, "more than"),
        (answer(200, MODEL), 10**12, "is ordered"),
        (answer(206, MODEL, {"Content-Range": "bytes 5-9/10"}), len(MODEL), "not the range"),
        (answer(206, MODEL), len(MODEL), "not the range"),
        (message(Refusal("behind the end", ""), 416), len(MODEL), "416"),
        (message(Refusal("gone", ""), 404), len(MODEL), "gone"),
        (answer(200, bytes(300_000), CBOR), len(MODEL), "more than"),
    ],
)
def test_wrong_models_are_refused_and_leave_nothing(
    models: Models, reply: bytes, size: int, complaint: str
) -> None:
    with (
        connected(lambda _: reply) as (_, connection),
        pytest.raises(ProtocolError, match=complaint),
    ):
        fetch(connection, models, size)
    assert list(models.path.iterdir()) == []


def test_a_difference_is_handed_on(models: Models) -> None:
    with connected(lambda _: answer(200, b"difference", CBOR)) as (_, connection):
        assert fetch(connection, models, base=bytes(32)) == Download(10, b"difference")
    assert list(models.path.iterdir()) == []


def test_unfinished_downloads_do_not_pile_up(models: Models) -> None:
    """The aggregator moves on to a new model before the one before has arrived, again and again."""
    digests = [hashlib.sha256(bytes([each])).digest() for each in range(20)]

    def script(request: Request) -> bytes | None:
        server.wait_for(lambda _: True)
        threading.Timer(0.05, server.hang_up).start()
        return answer(200, MODEL)[:-100]

    with connected(script) as (server, connection):
        for digest in digests:
            with pytest.raises(NetworkError):
                download_model(
                    connection, models, digest, len(MODEL), deadline=time.monotonic() + 5
                )
            # The control: what arrived of this one stays.
            assert list(models.path.iterdir()) == [models.partial(digest)]


def test_a_disk_that_is_full_is_no_network_error(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with connected(ranged) as (_, connection), pytest.raises(StorageError) as caught:
        fetch(connection, models)
    assert "make room" in caught.value.hint


def test_a_download_ends_at_the_deadline(models: Models) -> None:
    with connected(ranged) as (_, connection), pytest.raises(NetworkError, match="deadline"):
        download_model(connection, models, DIGEST, len(MODEL), deadline=time.monotonic() - 1)
