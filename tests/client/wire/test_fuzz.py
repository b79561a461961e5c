# SPDX-License-Identifier: Apache-2.0
"""Invariant: whatever the bytes are, decoding gives a message or raises `ProtocolError`.

A message that comes out encodes to the very bytes that went in, unless these had keys that are
ignored (then to fewer). An array that comes out of `decode_delta` has the size and the range that
were asked for. Nothing takes more memory than a small multiple of the body and of the tensor.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from fedlearn.errors import ProtocolError
from fedlearn.wire import codec
from fedlearn.wire.delta import decode_delta, encode_delta
from tests.client.wire.deltas import weight_delta
from tests.client.wire.examples import EXAMPLES, MAX_BYTES

BODIES = 20_000
SECONDS = 5.0  # on a slow machine fewer bodies are tried


def mutations(seeds: list[bytes], seed: int) -> Iterator[bytes]:
    """As many as there is time for."""
    rng = random.Random(seed)
    until = time.monotonic() + SECONDS
    for _ in range(BODIES):
        yield mutated(seeds, rng)
        if time.monotonic() > until:
            return


def mutated(seeds: list[bytes], rng: random.Random) -> bytes:
    """A body near the valid ones: bytes changed, cut, doubled, moved, spliced; some just noise."""
    body = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(body) + 1)
        end = at + rng.randrange(12)
        match rng.randrange(8):
            case 0 | 1:
                body[at : at + 1] = rng.randbytes(1)
            case 2 if at < len(body):
                body[at] ^= 1 << rng.randrange(8)
            case 3:
                del body[at:end]
            case 4:
                body[at:at] = body[at:end] * rng.randrange(1, 4)
            case 5:
                body[at:] = rng.choice(seeds)[rng.randrange(20) :]
            case 6:  # a head with a lie about what follows
                body[at : at + 1] = bytes([rng.randrange(256) | 24]) + rng.randbytes(4)
            case _ if rng.random() < 0.1:
                body[:] = rng.randbytes(rng.randrange(60))
    return bytes(body)


def test_messages() -> None:
    kinds: Any = tuple({type(example) for example in EXAMPLES})
    accepted, statuses = 0, Counter[int]()
    tracemalloc.start()
    try:
        for body in mutations([codec.encode(example) for example in EXAMPLES], 1):
            try:
                message = codec.decode(kinds, body, max_bytes=MAX_BYTES)
            except ProtocolError as error:
                statuses[error.status] += 1
                continue
            accepted += 1
            again = codec.encode(message)
            assert again == body or len(again) < len(body)
            assert codec.decode(kinds, again, max_bytes=MAX_BYTES) == message
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    # Control: the mutations reach both sides of the line.
    assert accepted > 50
    assert set(statuses) == {400, 422}


def test_deltas() -> None:
    rng = np.random.default_rng(1)
    grids = (
        weight_delta(rng, 8, 40),
        rng.integers(-9, 9, (4, 10), np.int32),
        rng.integers(-900, 900, (9,), np.int32),
    )
    seeds = [bytes([encoding]) + data for encoding, data in map(encode_delta, grids)]
    accepted, statuses = 0, Counter[int]()
    for number, body in enumerate(mutations(seeds, 2)):
        size = grids[number % len(grids)].size
        encoding, data = (body[0], body[1:]) if body else (0, b"")
        try:
            values = decode_delta(encoding, data, size, dtype="int8")
        except ProtocolError as error:
            statuses[error.status] += 1
        else:
            assert values.shape == (size,)
            assert np.abs(values).max() <= 255
            accepted += 1
    assert accepted > 50
    assert set(statuses) == {422}
