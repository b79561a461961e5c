# SPDX-License-Identifier: Apache-2.0
"""What a run of the demo can be told."""

from __future__ import annotations

from dataclasses import dataclass

from fedlearn.wire.messages import TAILS

# In the words of a title.
_TRAINED = dict(zip(TAILS, ("last layer", "dense layers", "whole network"), strict=True))


@dataclass(frozen=True, slots=True)
class Settings:
    """One run. The learning rate and its company are the best of a small search."""

    devices: int = 10
    rounds: int = 20
    seed: int = 0
    alpha: float = 0.5  # of the Dirichlet split: small is skewed
    tail: str = "all"
    epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 0.1

    @property
    def title(self) -> str:
        """The run in a line."""
        return (
            f"Federated digits: {self.devices} devices, int8 .tflite, {_TRAINED[self.tail]}, "
            f"{self.rounds} rounds"
        )
