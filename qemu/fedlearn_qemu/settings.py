# SPDX-License-Identifier: Apache-2.0
"""What a run can be told."""

from __future__ import annotations

from dataclasses import dataclass

from fedlearn_qemu.machine import MEMORY_MB


@dataclass(frozen=True, slots=True)
class Settings:
    """One run of the fleet."""

    devices: int = 2
    rounds: int = 3
    seed: int = 0
    alpha: float = 0.5  # of the Dirichlet split: small is skewed
    samples: int = 1000  # of all devices together; 4,000 are there
    tail: str = "dense"
    epochs: int = 1
    batch_size: int = 16
    memory_mb: int = MEMORY_MB
    cores: int = 1
    user_network: bool = False
    limit_s: float = 1800.0
