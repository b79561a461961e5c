# SPDX-License-Identifier: Apache-2.0
"""Malformed bodies against the codec and over HTTP.

Invariant: the codec gives a message or raises ProtocolError, the server answers 4xx (or takes what
happens to be a message of the protocol), each within 50 ms; memory stays where it was, and the
limit of a body is enforced while it comes, before anything is decoded.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedlearn.errors import ProtocolError
from fedlearn.wire import codec
from fedlearn.wire.delta import decode_delta
from fedlearn.wire.messages import EncodedTensor, Encoding, Update
from tests.aggregator.devices import TASK, make_update, start_model
from tests.aggregator.process import init, serve
from tests.benchmarks.faults.client import Light
from tests.benchmarks.faults.processes import percentile, rss_kib
from tests.client.wire.examples import EXAMPLES, MAX_BYTES
from tests.client.wire.test_fuzz import mutated

AT_MOST_S = 0.05
GROWTH_KIB = 32 * 1024
# What the interpreter, the allocator and the server's caches take once.
_WARM_UP = 2000
_CONNECTIONS = 8
_KINDS: Any = tuple({type(example) for example in EXAMPLES})
Decode = Callable[[bytes], object]


def bombs() -> list[bytes]:
    """Small bodies that promise much."""
    deep = [b"\x81" * depth + b"\x00" for depth in (9, 100, 10_000, MAX_BYTES - 1)]
    deep += [b"\xa1\x61a" * 30_000 + b"\x00", b"\xc1" * 50_000 + b"\x00"]
    lies = [
        head + struct.pack(">Q", length)
        for head in (b"\x5b", b"\x7b", b"\x9b", b"\xbb")
        for length in (MAX_BYTES, 2**31, 2**32, 2**63 - 1, 2**64 - 1)
    ]
    endless = [b"\x9f" + b"\x00" * 1000, b"\x5f" + b"\x41a" * 1000 + b"\xff", b"\xbf\x61a"]
    full = [b"\x9a" + struct.pack(">I", 90_000) + b"\x00" * 90_000]
    packed = zlib.compress(bytes(50_000_000), 9)
    inflated = [
        codec.encode(
            Update(
                TASK,
                1,
                start_model().digest,
                "a",
                1,
                make_update(start_model(), "a", 1).metrics,
                (EncodedTensor(tensor.index, encoding, packed),),
            )
        )
        for tensor in make_update(start_model(), "a", 1).tensors
        for encoding in (Encoding.CODES, Encoding.PLANES)
    ]
    return [*deep, *lies, *endless, *full, *inflated]


def bodies(count: int, seed: int) -> Iterator[bytes]:
    """Mutations of real messages, and a bomb now and then."""
    rng = random.Random(seed)
    seeds = [codec.encode(example) for example in EXAMPLES]
    seeds.append(codec.encode(make_update(start_model(), "a", 1)))
    explosive = bombs()
    for number in range(count):
        if number % 50 == 0:
            yield explosive[number // 50 % len(explosive)]
        else:
            yield mutated(seeds, rng)


def decode(body: bytes) -> object:
    """As the server does: the message, and the deltas of an update."""
    message = codec.decode(_KINDS, body, max_bytes=MAX_BYTES)
    if isinstance(message, Update):
        for tensor in message.tensors:
            decode_delta(tensor.encoding, tensor.data, 640, dtype="int8")
    return message


def against_the_codec(count: int, *, decode: Decode = decode) -> dict[str, Any]:
    """Figures. `decode` is another one in a control."""
    outcomes: Counter[str] = Counter()
    times_s: list[float] = []
    base = 0
    for number, body in enumerate(bodies(count, 1)):
        if number == min(_WARM_UP, count // 2):
            gc.collect()
            base = rss_kib(os.getpid())
        begin = time.perf_counter()
        try:
            decode(body)
            outcomes["decoded"] += 1
        except ProtocolError:
            outcomes["refused"] += 1
        except Exception as error:
            outcomes[type(error).__name__] += 1
        times_s.append(time.perf_counter() - begin)
    gc.collect()
    return {
        "bodies": count,
        "decoded": outcomes.pop("decoded", 0),
        "refused": outcomes.pop("refused", 0),
        "escaped": dict(outcomes),
        # The list of times is ours.
        "growth_kib": max(0, rss_kib(os.getpid()) - base - 32 * count // 1024),
        "slowest_s": round(max(times_s), 4),
        "over_50_ms": sum(each > AT_MOST_S for each in times_s),
        "median_us": round(percentile(times_s, 0.5) * 1e6, 1),
    }


def over_http(folder: Path, count: int) -> dict[str, Any]:
    """Figures of a serving process."""
    init(folder, "--cohort", "1000", "--minimum", "1", "--deadline-s", "36000", "--tokens", "0")
    with serve(folder, "--no-mdns", "--log-level", "error") as aggregator:
        pid = aggregator.process.pid
        port = int(aggregator.url.rpartition(":")[2])
        asyncio.run(_send(port, min(_WARM_UP, count), 3))
        before = rss_kib(pid)
        statuses, times_s, broken = asyncio.run(_send(port, count, 2))
        after = rss_kib(pid)
        alive = aggregator.device("good").order().round == 1  # the control
    kinds = Counter(f"{status // 100}xx" for status in statuses)
    return {
        "bodies": count,
        "answers": dict(kinds),
        "broken": broken,
        "growth_kib": max(0, after - before),
        "p999_s": round(percentile(times_s, 0.999), 4),
        "slowest_s": round(max(times_s), 4),
        "over_50_ms": sum(each > AT_MOST_S for each in times_s),
        "alive": alive,
    }


async def _send(port: int, count: int, seed: int) -> tuple[list[int], list[float], int]:
    statuses: list[int] = []
    times_s: list[float] = []
    broken = 0
    waiting = iter(bodies(count, seed))

    async def connection(number: int) -> None:
        nonlocal broken
        # A seat, so that updates get as far as they can.
        light = Light(port, f"device-{number}")
        await light.check_in()
        for at, body in enumerate(waiting):
            chunked = at % 10 == 9
            path = "/v1/checkin" if at % 3 == 0 else f"/v1/rounds/1/updates/{light.name}"
            if at % 17 == 5:
                path = f"/v1/devices/{light.name}/certificate"
            begin = time.perf_counter()
            try:
                method = "POST" if at % 3 == 0 and at % 17 != 5 else "PUT"
                statuses.append(await light.post_raw(method, path, body, chunked=chunked))
            except (OSError, EOFError, ValueError):
                broken += 1
                light.close()
            times_s.append(time.perf_counter() - begin)
        light.close()

    await asyncio.gather(*(connection(number) for number in range(_CONNECTIONS)))
    return statuses, times_s, broken


def ordeal(folder: Path, *, codec_bodies: int, http_bodies: int) -> dict[str, Any]:
    """Both; figures."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"codec": against_the_codec(codec_bodies), "http": over_http(folder, http_bodies)}


def faults(figures: dict[str, Any]) -> list[str]:
    """What does not hold."""
    decoded, http = figures["codec"], figures["http"]
    # A machine that is busy elsewhere stops anybody for 50 ms now and then.
    spikes = max(2, decoded["bodies"] // 100_000)
    return [
        what
        for what, holds in (
            (f"the codec raises {decoded['escaped']}", not decoded["escaped"]),
            ("the codec grows", decoded["growth_kib"] <= GROWTH_KIB),
            ("the codec is slow", decoded["over_50_ms"] <= spikes),
            ("the server answers 5xx", not http["answers"].get("5xx")),
            ("the server grows", http["growth_kib"] <= GROWTH_KIB),
            ("the server is slow", http["p999_s"] <= AT_MOST_S),
            ("the server is gone", http["alive"]),
        )
        if not holds
    ]
