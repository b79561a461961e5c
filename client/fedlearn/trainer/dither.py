# SPDX-License-Identifier: Apache-2.0
"""Random numbers for stochastic rounding.

floor(x + u) with u uniform in [0, 1) is x in the mean, so that steps smaller than the grid are not
lost (Gupta et al. 2015, "Deep Learning with Limited Numerical Precision").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.trainer.order import philox

# Numbers of 16 bits that one counter of Philox gives.
_DRAWS = 8
# Keeps these streams apart from the orders of the samples, which have small numbers there.
_STREAM = 0xD17E


class Dither:
    """A stream of uniform numbers that depends on the seed alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._position = 0

    def draw(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Uniform numbers within (0, 1), multiples of 2^-17."""
        count = int(np.prod(shape))
        blocks = -(-count // _DRAWS)
        counters = np.zeros((4, blocks), np.uint64)
        counters[0] = np.arange(blocks)
        counters[1] = self._position
        counters[3] = _STREAM
        self._position += 1
        words = philox(counters, self._seed).astype(np.uint32)
        halves = np.concatenate([words & np.uint32(0xFFFF), words >> np.uint32(16)])
        uniform = halves.ravel()[:count].astype(np.float32)
        uniform += np.float32(0.5)
        uniform *= np.float32(2.0**-16)
        return uniform.reshape(shape)
