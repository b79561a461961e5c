# SPDX-License-Identifier: Apache-2.0
"""What a run of the gestures demo can be told."""

from __future__ import annotations

from dataclasses import dataclass

# Who is held out. Three choices, made before anything was trained.
CHOICES = ((1, 2), (4, 5), (7, 8))


@dataclass(frozen=True, slots=True)
class Settings:
    """One run.

    The learning rates come of a small search on the first choice of the held out: int8 with 0.1,
    0.15 and 0.2 and batches of 8 is as good, float32 with 0.05 and 0.1, too; float32 with 0.2 and
    batches of 16 breaks down.
    """

    choices: tuple[tuple[int, int], ...] = CHOICES
    rounds: int = 15
    seed: int = 0
    speed: float = 0.0  # of the replay; 1: as it was recorded, 0: as fast as the devices take it
    epochs: int = 2
    batch_size: int = 8
    learning_rate: float = 0.15
    float_learning_rate: float = 0.05
    personal_epochs: int = 1
    few: int = 5  # windows of each exercise that a new person labels
    few_epochs: int = 40
    few_learning_rate: float = 0.05

    @property
    def alone_epochs(self) -> int:
        """A device alone trains as long as it does in all rounds."""
        return self.rounds * self.epochs
