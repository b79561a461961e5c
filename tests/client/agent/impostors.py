# SPDX-License-Identifier: Apache-2.0
"""A LAN on which almost everybody lies: impostors announce the task beside its one true aggregator.

    python -m tests.client.agent.impostors [--count N] [--control] FOLDER

makes a network namespace of its own, in it the impostors, an aggregator and an agent, and prints
what came of it as JSON, see `Outcome`. With `--control` the agent checks nothing: then it must give
itself away, or the impostors would count nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from fedlearn.agent.discovery import SERVICE_TYPE
from fedlearn.agent.identity import Identity
from fedlearn_aggregator.identity.authority import SERVER_DAYS, Authority, parse_request
from fedlearn_aggregator.identity.folder import Folder, ensure
from tests.aggregator import process
from tests.client.agent.whole import LOOPBACK, Agent, make_store

PATIENCE_S = 60.0
# The agent needs less to ask fifty impostors, of whom seven keep it waiting.
ASKING_S = 4.0
DAY_S = 86400
DEVICE = "board"
TASK = "valves"
# RFC 8446, section 5.1: the first byte of a record with a handshake message.
_HANDSHAKE = 0x16


class Kind(Enum):
    """What an impostor tries."""

    FOREIGN_CA = "a certificate of another CA"
    EXPIRED = "an expired certificate of the right CA"
    DEVICE = "the certificate of a device of the fleet"
    OLD_TLS = "TLS 1.2"
    DOWNGRADE = "plain HTTP where TLS was announced"
    PLAIN = "plain HTTP, announced as such"
    SILENT = "to accept and say nothing"


@dataclass
class Outcome:
    """What came of it. `leaked` is application data in bytes, by kind of impostor."""

    impostors: int
    connections: int
    leaked: dict[str, int]
    found_s: float | None  # from the aggregator's start to enrolment; None: never


@dataclass
class Impostors:
    """Servers on loopback that record what they are told."""

    task: str
    contexts: dict[Kind, ssl.SSLContext]
    connections: int = 0
    leaked: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))

    @contextmanager
    def announced(self, count: int) -> Iterator[None]:
        """Be there, `count` of them, and by mDNS, in a thread of their own."""
        ready, stop = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()

        async def run() -> None:
            async with AsyncZeroconf(interfaces=["127.0.0.1"]) as zeroconf:
                infos = [await self._serve(number) for number in range(count)]
                waiting = [
                    await zeroconf.async_register_service(each, cooperating_responders=True)
                    for each in infos
                ]
                await asyncio.gather(*waiting)
                ready.set()
                await stop.wait()

        thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
        thread.start()
        assert ready.wait(PATIENCE_S)
        yield
        loop.call_soon_threadsafe(stop.set)
        thread.join()

    async def _serve(self, number: int) -> ServiceInfo:
        kind = list(Kind)[number % len(Kind)]
        server = await asyncio.start_server(
            lambda reader, writer: self._talk(kind, reader, writer),
            "127.0.0.1",
            0,
        )
        hints = {"v": "1", "task": self.task, "path": "/v1"}
        return ServiceInfo(
            SERVICE_TYPE,
            f"{self.task}-{number:04}.{SERVICE_TYPE}",
            addresses=[socket.inet_aton("127.0.0.1")],
            port=server.sockets[0].getsockname()[1],
            properties={**hints, "tls": "0" if kind is Kind.PLAIN else "1"},
            server=f"impostor-{number}.local.",
        )

    async def _talk(
        self, kind: Kind, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        if kind in self.contexts:
            try:
                await writer.start_tls(self.contexts[kind])
            except OSError:
                return  # this is what should happen
        first = b""
        while data := await reader.read(65536):
            first = first or data
            # A plain listener hears the handshake, which must name neither device nor task.
            encrypted = first[0] == _HANDSHAKE and kind not in self.contexts
            told = DEVICE.encode() in data or self.task.encode() in data
            if not encrypted or told:
                self.leaked[kind] += len(data)
            if kind is not Kind.SILENT:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()


def contexts(store: Path, folder: Path) -> dict[Kind, ssl.SSLContext]:
    """The certificates that impostors may come by."""
    now = time.time()
    with closing(Folder.open(store / "identity")) as fleet:
        right = fleet.authority
    stranger = Authority.create(now)
    folder.mkdir()
    stolen = Identity(folder, "stolen")
    request = parse_request(stolen.request(), "stolen")
    made = {
        Kind.FOREIGN_CA: stranger.certify_server(["127.0.0.1"], now),
        Kind.EXPIRED: right.certify_server(["127.0.0.1"], now - (SERVER_DAYS + 1) * DAY_S),
        Kind.DEVICE: (right.certify_device(request, "stolen", now)[0], stolen.key.read_bytes()),
        Kind.OLD_TLS: stranger.certify_server(["127.0.0.1"], now),
    }
    found = {}
    for kind, (certificate, key) in made.items():
        (folder / "pem").write_bytes(certificate + key)
        found[kind] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        found[kind].load_cert_chain(folder / "pem")
    found[Kind.OLD_TLS].maximum_version = ssl.TLSVersion.TLSv1_2
    return found


def play(folder: Path, count: int, *, gullible: bool) -> Outcome:
    """In the namespace: the impostors, then the agent, and when it has asked around the aggregator.

    Should the aggregator be there first, mDNS may name it first, and nothing is shown.
    """
    with ExitStack() as stack:
        # Of a fleet that has been there for a while: certificates of its CA have expired.
        ensure(folder / "aggregator/identity", time.time() - 100 * DAY_S)
        store = make_store(folder / "aggregator", TASK, rounds=0)
        impostors = Impostors(TASK, contexts(store, folder / "impostors"))
        agent = Agent(folder / "device", TASK, store)
        stack.callback(agent.close)
        stack.enter_context(impostors.announced(count))
        agent.start("tests.client.agent.gullible" if gullible else "fedlearn")
        if not gullible:
            time.sleep(ASKING_S)
            stack.enter_context(process.serve(store, *LOOPBACK, trust=""))
        began = time.monotonic()
        found_s = None
        while found_s is None and time.monotonic() - began < PATIENCE_S:
            time.sleep(0.05)
            if " enrolled\n" in agent.log:
                found_s = round(time.monotonic() - began, 2)
            if gullible and all(impostors.leaked[each] for each in TALKATIVE):
                break
    leaked = {kind.value: size for kind, size in impostors.leaked.items()}
    return Outcome(count, impostors.connections, leaked, found_s)


# To all of these the control gives itself away; the others it cannot understand.
TALKATIVE = (Kind.FOREIGN_CA, Kind.EXPIRED, Kind.DEVICE, Kind.PLAIN)


def run(folder: Path, count: int, *, gullible: bool = False) -> Outcome:
    """`play` in a namespace of its own, which nothing leaves. OSError where there is none."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    module = [sys.executable, "-m", "tests.client.agent.impostors", "--inside"]
    words = [*module, "--count", str(count), *(["--control"] if gullible else []), str(folder)]
    done = subprocess.run(
        ["unshare", *user, "--net", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"no namespace, or no end: {done.stderr[-2000:]}")
    return Outcome(**json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--control", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if not options.inside:
        print(json.dumps(asdict(run(options.folder, options.count, gullible=options.control))))
        return
    for words in ("link set lo up", "route add 224.0.0.0/4 dev lo"):
        subprocess.run(["ip", *words.split()], check=True)
    outcome = play(options.folder, options.count, gullible=options.control)
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
