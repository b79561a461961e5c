# SPDX-License-Identifier: Apache-2.0
"""A closed round, as the aggregator tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

KB = 1000


@dataclass(frozen=True, slots=True)
class Round:
    """One closed round.

    `bytes_up` and `bytes_down` hold one body a device; `bytes_down` none for a device that had the
    model. Accuracy in 0..1 and loss in nats are the new model's on the test digits.
    """

    number: int
    devices: int
    accuracy: float
    loss: float
    bytes_up: tuple[int, ...]
    bytes_down: tuple[int, ...]
    wall_s: float
    slowest_train_s: float
    model: str  # SHA-256 of the new model, hex

    @property
    def overhead_s(self) -> float:
        """What the round took beyond its slowest local training."""
        return self.wall_s - self.slowest_train_s

    @property
    def up_kb(self) -> float:
        """Median update in kB."""
        return median(self.bytes_up) / KB

    @property
    def down_kb(self) -> float:
        """Median model download in kB."""
        return median(self.bytes_down) / KB if self.bytes_down else 0.0
