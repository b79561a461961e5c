# SPDX-License-Identifier: Apache-2.0
"""The weighted mean of client updates, by exact sums that no order of arrival can change.

An int64 sum of samples x delta is exact and commutative as long as nothing overflows, and nothing
can: |delta| <= 2^31 (`fedlearn.wire.delta` decodes to int32), samples <= MAX_SAMPLES = 2^20, and
updates <= MAX_COHORT = 2^10, hence |sum| <= 2^61 < 2^63. The division at the end rounds twice,
int64 to float64 and the quotient, both as IEEE 754 prescribes: the same bits on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedlearn.wire.messages import TrainableTensor
from fedlearn_aggregator.rounds import MAX_COHORT

# Samples that one update may weigh. Far above what a board can train on in a round.
MAX_SAMPLES = 1 << 20

Deltas = Mapping[int, npt.NDArray[np.int32]]
Arrays = dict[int, npt.NDArray[np.float64]]


class DeltaSum:
    """The running sum of one round.

    A device with little memory trains some of the tensors alone (`fedlearn.trainer.budget`), so
    each tensor has its own sum of samples: what was not trained pulls nothing towards zero.
    """

    def __init__(self, tensors: Sequence[TrainableTensor]) -> None:
        self.samples = 0
        self.updates = 0
        self._sums = {t.index: np.zeros(t.shape, np.int64) for t in tensors}
        self._weights = dict.fromkeys(self._sums, 0)

    def add(self, samples: int, deltas: Deltas) -> None:
        """Add one update: `deltas` holds the tensors that it trained in their own shape, int32.

        Raises ValueError, and adds nothing, beyond the limits that make the sum exact.
        """
        if not 1 <= samples <= MAX_SAMPLES or self.updates >= MAX_COHORT:
            raise ValueError(f"update {self.updates + 1} of {samples} samples is over the limits")
        shapes = {index: total.shape for index, total in self._sums.items()}
        if any(shapes.get(index) != delta.shape for index, delta in deltas.items()):
            raise ValueError("update does not fit the trainable tensors")
        for index, delta in deltas.items():
            total = self._sums[index]
            np.add(total, np.multiply(delta, samples, dtype=np.int64), out=total)
            self._weights[index] += samples
        self.samples += samples
        self.updates += 1

    def mean(self) -> Arrays:
        """sum(n_k D_k) / sum(n_k) by tensor, float64, in steps of the tensor's grid.

        The sums run over the updates that trained the tensor; zero where none did.
        """
        return {
            index: total / np.float64(max(self._weights[index], 1))
            for index, total in self._sums.items()
        }
