# SPDX-License-Identifier: Apache-2.0
"""The exponential function in fixed point.

exp() differs in its last bits from one C library to the next, so it is a table of integers here:
e^-d = 2^-t with t = d log2(e) in steps of 2^-10, whose fraction is looked up and whose integer
part is a shift.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

STEP_BITS = 10  # of the exponent: relative error below 2^-11 ln 2 = 0.034 %
TABLE_BITS = 30  # of an entry: 2^30 * 4,096 classes stays within int64
FARTHEST = TABLE_BITS << STEP_BITS  # beyond, the entry is shifted to zero
LOG2_E = np.float32(1.4426950408889634 * (1 << STEP_BITS))


def _powers() -> NDArray[np.int64]:
    """round(2^30 2^(-i / 1024)), computed with integers alone: ten square roots, then powers."""
    guard = 128
    root = 1 << (guard - 1)  # one half
    for _ in range(STEP_BITS):
        root = isqrt(root << guard)
    entries, power = [], 1 << guard
    for _ in range(1 << STEP_BITS):
        entries.append((power + (1 << (guard - TABLE_BITS - 1))) >> (guard - TABLE_BITS))
        power = (power * root) >> guard
    return np.array(entries, np.int64)


POWERS = _powers()


def steps(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distances d >= 0 as multiples of the exponent's step, not yet rounded."""
    return distance * LOG2_E


def negative_exponential(distance_steps: NDArray[np.float32]) -> NDArray[np.int64]:
    """2^30 e^-d for distances in `steps`."""
    whole = np.rint(np.minimum(distance_steps, np.float32(FARTHEST))).astype(np.int64)
    return POWERS[whole & ((1 << STEP_BITS) - 1)] >> (whole >> STEP_BITS)
