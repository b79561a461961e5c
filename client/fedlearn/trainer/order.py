# SPDX-License-Identifier: Apache-2.0
"""The order of the samples, from the round's seed alone.

Philox (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") is a counter-based
generator; its raw bits are used directly, because NumPy promises those never to change, while its
distributions may.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def device_seed(round_seed: int, device: str) -> int:
    """The seed of one device in a round, 64 bits: same for a replay, different for each device."""
    digest = hashlib.sha256(f"{round_seed}/{device}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def sample_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of `count` samples: sorted by one 64-bit draw each."""
    draws = np.random.Philox(key=seed, counter=epoch << 64).random_raw(count)
    return np.argsort(draws, kind="stable").astype(np.int64)
