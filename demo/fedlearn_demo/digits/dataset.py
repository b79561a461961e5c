# SPDX-License-Identifier: Apache-2.0
"""The digits: 4,000 to train on, 1,000 to test with, and how they are dealt out to devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODEL_PATH = Path(__file__).with_name("digits.tflite")
DATA_PATH = Path(__file__).with_name("digits.npz")
# Fewer would make a device's part of a round a matter of luck.
MIN_SAMPLES = 8

Images = NDArray[np.uint8]
Labels = NDArray[np.uint8]


def load_train() -> tuple[Images, Labels]:
    """Return the training images, uint8 (4000, 28, 28, 1), and their labels, uint8 (4000,)."""
    return _load("train")


def load_test() -> tuple[Images, Labels]:
    """Return the test images, uint8 (1000, 28, 28, 1), and their labels, uint8 (1000,)."""
    return _load("test")


def _load(part: str) -> tuple[Images, Labels]:
    with np.load(DATA_PATH, allow_pickle=False) as arrays:
        return arrays[f"x_{part}"], arrays[f"y_{part}"]


def dirichlet_split(
    labels: NDArray[np.integer[Any]], clients: int = 10, alpha: float = 0.5, seed: int = 0
) -> list[NDArray[np.int64]]:
    """Deal samples out to clients so that each has its own mix of classes (label skew).

    Each class is cut at proportions drawn from Dirichlet(alpha): Hsu, Qi, Brown 2019, "Measuring
    the Effects of Non-Identical Data Distribution". Small alpha, strong skew. Every sample goes to
    exactly one client, and every client gets `MIN_SAMPLES` or more. Returns one array of indices
    into `labels` a client, shuffled; the same for the same arguments.

    Raises ValueError when there are too few samples for the clients.
    """
    if clients < 1 or clients * MIN_SAMPLES > len(labels):
        raise ValueError(f"{len(labels)} samples cannot serve {clients} clients")
    rng = np.random.Generator(np.random.PCG64(seed))
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1]
        for part, cut in zip(
            parts, np.split(members, np.rint(shares * len(members)).astype(np.int64)), strict=True
        ):
            part.extend(cut.tolist())
    while len(smallest := min(parts, key=len)) < MIN_SAMPLES:
        smallest.append(max(parts, key=len).pop())
    return [rng.permutation(np.array(part, np.int64)) for part in parts]
