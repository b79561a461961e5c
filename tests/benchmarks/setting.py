# SPDX-License-Identifier: Apache-2.0
"""What both sides of the accuracy benchmark are run with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """One federated run; the same for int8 and float32 but for the learning rate."""

    seed: int
    learning_rate: float
    epochs: int
    batch_size: int
    rounds: int = 20
    clients: int = 10
    alpha: float = 0.5
