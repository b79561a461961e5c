# SPDX-License-Identifier: Apache-2.0
"""What both sides of the accuracy benchmark are run with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Setting:
    """One federated run; the same for int8 and float32 but for the learning rate."""

    seed: int
    learning_rate: float
    epochs: int = 2
    batch_size: int = 16
    rounds: int = 20
    clients: int = 10
    alpha: float = 0.5
    # Of the int8 side:
    fraction_bits: int = 8
    errors: str = "int8"
    rescale: bool = True


def round_seed(setting: Setting, number: int, client: int = 0) -> int:
    """A seed of 64 bits for the order of samples."""
    return int(
        np.random.SeedSequence((setting.seed, number, client)).generate_state(1, np.uint64)[0]
    )
