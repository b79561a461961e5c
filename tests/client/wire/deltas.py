# SPDX-License-Identifier: Apache-2.0
"""Synthetic weight deltas with the structure that training gives real ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A conv8-conv16-dense64-dense10 net on 28 x 28 pixels; biases last.
SHAPES = ((64, 784), (10, 64), (16, 3, 3, 8), (8, 3, 3, 1), (64,), (10,), (16,), (8,))


def weight_delta(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.int32]:
    """A delta (rows, columns) as SGD leaves it: errors by outputs times activities by inputs.

    A fifth of the outputs and half of the inputs are dead and activities are never negative. As
    in real deltas, 16 to 20 % are not zero and 92 to 95 % are within +-1.
    """
    errors = rng.standard_normal((rows, 12)) * rng.lognormal(0, 0.5, (rows, 1))
    errors[rng.random(rows) < 0.2] = 0
    activities = rng.lognormal(0, 0.5, columns) * rng.gamma(0.5, 1.0, (12, columns))
    activities[:, rng.random(columns) < 0.5] = 0
    gradient = errors @ activities
    step = np.quantile(np.abs(gradient[gradient != 0]), 0.55)
    return np.rint(gradient * (0.5 / step)).clip(-127, 127).astype(np.int32)


def model_delta(rng: np.random.Generator) -> list[NDArray[np.int32]]:
    """The deltas of all tensors of the net."""
    deltas = []
    for shape in SHAPES:
        if len(shape) == 1:
            deltas.append(np.rint(rng.standard_normal(shape) * 300).astype(np.int32))
        else:
            grid = weight_delta(rng, shape[0], int(np.prod(shape[1:])))
            deltas.append(grid.reshape(shape))
    return deltas


def entropy_bytes(values: NDArray[np.int32]) -> float:
    """What an ideal code of the values' frequencies alone takes."""
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / values.size)).sum() / 8)
