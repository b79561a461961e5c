# SPDX-License-Identifier: Apache-2.0
"""The order of the samples, from the round's seed alone.

Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") turns a counter
and a key into random bits by ten rounds of multiplication. It is written out here, because a
training that can be repeated in ten years must not hang on a library's streams.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counters: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Random 32-bit words (4, N) for counters of four 32-bit words (4, N) and a 64-bit key."""
    a, b, c, d = counters
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a = (second >> _HALF) ^ b ^ np.uint64(low)
        c = (first >> _HALF) ^ d ^ np.uint64(high)
        b, d = second & _WORD, first & _WORD
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d])


def device_seed(round_seed: int, device: str) -> int:
    """The seed of one device in a round, 64 bits: same for a replay, different for each device."""
    digest = hashlib.sha256(f"{round_seed}/{device}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def sample_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of `count` samples: sorted by one draw of 64 bits each."""
    counters = np.zeros((4, count), np.uint64)
    counters[0] = np.arange(count)
    counters[1] = epoch
    first, second, _, _ = philox(counters, seed)
    return np.argsort((first << _HALF) | second, kind="stable").astype(np.int64)
