# SPDX-License-Identifier: Apache-2.0
"""LOGISTIC inside a network; at its end the loss takes it into itself."""

from __future__ import annotations

import numpy as np

from fedlearn.trainer.fixed_point import Integers
from fedlearn.trainer.layer import Array
from fedlearn.trainer.lookup import LookupLayer


class Logistic(LookupLayer):
    """y = 1 / (1 + exp(-x)), in steps of 1/256 as the runtimes want it."""

    def _portable(self, *operands: Integers) -> Integers:
        """TFLite's own table: float32 at each step."""
        x = self.input.scales * operands[0].astype(np.float32)
        one = np.float32(1)
        # exp() of float64, rounded, is that of float32 whatever the C library.
        with np.errstate(over="ignore"):
            y = one / (one + np.exp(-x.astype(np.float64)).astype(np.float32))
        return np.floor((y / self.output.scales).astype(np.float64) + 0.5).astype(np.int64)

    def forward(self, *inputs: Array) -> Array:
        """The operator as the runtime computes it, bit by bit."""
        self._y = super().forward(*inputs)
        return self._y

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """The derivative is y (1 - y), of the int8 output: no exp(), the same bits everywhere."""
        if not wanted[0]:
            return (None,)
        y = self._y * np.float32(self.output.scale)
        return (errors * (y * (np.float32(1) - y)),)
