# SPDX-License-Identifier: Apache-2.0
"""Softmax cross-entropy in fixed point.

exp() differs in its last bits from one C library to the next, so it is a table of integers here:
e^-d = 2^-t with t = d log2(e) in steps of 2^-10, whose fraction is looked up and whose integer
part is a shift. Probabilities have 15 bits, errors p - y are exact multiples of 2^-15.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, log2

import numpy as np
from numpy.typing import NDArray

_STEP_BITS = 10  # of the exponent: relative error below 2^-11 ln 2 = 0.034 %
_TABLE_BITS = 30  # of an entry: 2^30 * 4,096 classes stays within int64
_PROBABILITY_BITS = 15
_FARTHEST = _TABLE_BITS << _STEP_BITS  # beyond, the entry is shifted to zero
_LOG2_E = np.float32(1.4426950408889634 * (1 << _STEP_BITS))


def _powers() -> NDArray[np.int64]:
    """round(2^30 2^(-i / 1024)), computed with integers alone: ten square roots, then powers."""
    guard = 128
    root = 1 << (guard - 1)  # one half
    for _ in range(_STEP_BITS):
        root = isqrt(root << guard)
    entries, power = [], 1 << guard
    for _ in range(1 << _STEP_BITS):
        entries.append((power + (1 << (guard - _TABLE_BITS - 1))) >> (guard - _TABLE_BITS))
        power = (power * root) >> guard
    return np.array(entries, np.int64)


_POWERS = _powers()


@dataclass(frozen=True, eq=False)
class Judgement:
    """Errors float32 (N, C) of the logits, summed loss in nats, number of right answers."""

    errors: NDArray[np.float32]
    loss: float
    hits: int


def softmax_cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Judgement:
    """Judge real-valued logits (N, C) by class numbers (N,).

    The errors are the gradient of the summed loss by the logits, p - one_hot(label).
    """
    rows = np.arange(len(logits))
    distance = (logits.max(axis=1, keepdims=True) - logits) * _LOG2_E
    steps = np.rint(np.minimum(distance, _FARTHEST)).astype(np.int64)
    mask = (1 << _STEP_BITS) - 1
    powers = _POWERS[steps & mask] >> (steps >> _STEP_BITS)
    total = powers.sum(axis=1, keepdims=True)
    # Rounded, so that a step of doubt falls to neither side.
    shares = ((powers << _PROBABILITY_BITS) + (total >> 1)) // total
    shares[rows, labels] -= 1 << _PROBABILITY_BITS
    errors = shares.astype(np.float32) * np.float32(2.0**-_PROBABILITY_BITS)
    # Only reported, never trained on: here the C library may round as it likes. The true loss of a
    # class beyond the table's reach is its distance.
    far = distance[rows, labels] / float(1 << _STEP_BITS)
    loss = float((far + np.log2(total[:, 0] / float(1 << _TABLE_BITS))).sum()) / log2(np.e)
    hits = int((logits.argmax(axis=1) == labels).sum())
    return Judgement(errors, loss, hits)
