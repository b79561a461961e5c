# SPDX-License-Identifier: Apache-2.0
"""Which elements TFLite's vector code takes, and which its portable code.

A kernel walks through runs of adjacent elements, in whole vectors as far as they go; what is left
of each run it computes one by one, in some operators with another rounding. A model of batch 1 is
assumed, as converters write it: with more, runs may go on from one sample to the next.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]


def remainder(run: int, lanes: int, shape: Shape) -> NDArray[np.bool_]:
    """Where in a sample of `shape` the portable code is at work, (1, *shape)."""
    places = np.arange(prod(shape)) % run
    return (places >= run - run % lanes).reshape(1, *shape)


def broadcast_run(one: Shape, two: Shape) -> tuple[int, bool]:
    """The runs of a kernel of two operands: their length, and whether one operand is a scalar.

    From the last axis on come those that both have alike; if these hold one element only, the run
    is that of the axes which the operand lacks that is broadcast first, a scalar there. Where both
    are broadcast by turns more than once, there is only portable code: runs of 1. Shapes have one
    rank.
    """
    pairs = list(zip(one, two, strict=True))
    if one == two:
        return prod(one), False
    first = next(pair for pair in reversed(pairs) if pair[0] != pair[1])
    if first[0] != 1:
        pairs = [(b, a) for a, b in pairs]
    lengths = []
    for kind in ("same", "first", "same", "second", "same"):
        length = 1
        while pairs and _is_of(kind, pairs[-1]):
            length *= max(pairs.pop())
        lengths.append(length)
    if pairs:
        return 1, False
    return (lengths[0], False) if lengths[0] > 1 else (lengths[1], True)


def _is_of(kind: str, pair: tuple[int, int]) -> bool:
    """Whether an axis continues this part of the pattern: which operand is broadcast there."""
    return {"same": pair[0] == pair[1], "first": pair[0] == 1, "second": pair[1] == 1}[kind]
