# SPDX-License-Identifier: Apache-2.0
"""Trainable integers with eight fraction bits.

Weights move by less than one step of their grid in most updates. Rounding each update to the grid
loses it, or needs randomness that is noise; so while it trains a parameter has 8 more bits, and is
rounded to its grid for each forward pass and, once, for the update that is sent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.trainer.exact import Real

FRACTION_BITS = 8
_ONE = float(1 << FRACTION_BITS)

# Symmetric int8 weights never hold -128 (TFLite quantisation specification).
WEIGHT_LIMIT = 127
# Keeps accumulator plus bias within int32 for any input: half of the range for each.
BIAS_LIMIT = (1 << 30) - 1


class Parameter:
    """One trainable tensor, shape (C, ...) with the output channel first.

    `grid` is what the forward pass uses: the values on the model's integer grid, float32 for
    weights (the operand of the exact matrix product), float64 for biases.
    """

    def __init__(self, values: NDArray[np.int8] | NDArray[np.int32]) -> None:
        self._dtype = values.dtype
        is_weight = values.dtype == np.int8
        self._limit = (WEIGHT_LIMIT if is_weight else BIAS_LIMIT) * _ONE
        self.grid: NDArray[Any] = values.astype(np.float32 if is_weight else np.float64)

    def thaw(self) -> None:
        """Make it trainable; a frozen one needs half of the memory."""
        store = np.int16 if self._dtype == np.int8 else np.int64
        self._fixed: NDArray[Any] = (self.grid * _ONE).astype(store)
        self._scratch: NDArray[Any] = np.empty(self.grid.shape, self.grid.dtype)

    def step(self, gradient: Real, rate: NDArray[np.float64] | float) -> None:
        """Subtract `rate * gradient` grid steps; `rate` broadcasts against the shape."""
        work = self._scratch
        np.multiply(gradient, np.asarray(rate, work.dtype) * work.dtype.type(_ONE), out=work)
        np.rint(work, out=work)
        np.subtract(self._fixed, work, out=work, casting="unsafe")
        np.clip(work, -self._limit, self._limit, out=work)
        np.copyto(self._fixed, work, casting="unsafe")
        np.multiply(work, work.dtype.type(1.0 / _ONE), out=self.grid)
        np.rint(self.grid, out=self.grid)

    def values(self) -> NDArray[Any]:
        """The values on the grid, in the tensor's own dtype, int8 or int32."""
        return self.grid.astype(self._dtype)
