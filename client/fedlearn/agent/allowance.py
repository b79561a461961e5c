# SPDX-License-Identifier: Apache-2.0
"""How much memory a training may need, once it has been killed for taking too much.

The first time the allowance is half of what the training had taken beside the program itself, then
each time half of what it was. The trainer picks tensors that fit, as it does for
`training.memory_kib`. An allowance holds for one kind of training: another network, other tensors,
another plan or another configuration starts without one. The weights do not matter: each round
brings others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fedlearn.config import TrainingConfig
from fedlearn.wire.messages import TrainOrder

# Not even the last layer of a small network trains with less.
LEAST_KIB = 64


@dataclass(frozen=True, slots=True)
class Allowance:
    """KiB that the trainings of this kind may need; 0: as many as the configuration says."""

    kib: int = 0
    kind: str = ""

    def of(self, kind: str) -> int:
        """Return the KiB for a training of this kind, 0 if there is no allowance for it."""
        return self.kib if self.kind == kind else 0


def kind_of(task: str, order: TrainOrder, config: TrainingConfig) -> str:
    """Name what a training's need of memory depends on."""
    # The weights of a network change, the length of its file does not.
    parts = (task, order.model_bytes, order.tensors, order.plan, order.limits.samples, config)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def after_death(kind: str, allowed_kib: int, need_kib: int) -> Allowance | None:
    """Return the next allowance; None when it is not known how much was too much.

    `allowed_kib` is what the training was allowed, 0 if there was no limit; `need_kib` what it had
    taken, 0 if it died before that was known.
    """
    too_much = min(allowed_kib or need_kib, need_kib or allowed_kib)
    return Allowance(max(LEAST_KIB, too_much // 2), kind) if too_much else None
