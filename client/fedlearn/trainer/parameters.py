# SPDX-License-Identifier: Apache-2.0
"""Trainable integers with fraction bits.

Weights move by less than one step of their grid in most updates. Rounding each update to the grid
loses it, or needs randomness that is noise; so while it trains a parameter has 8 more bits, and is
rounded to its grid for each forward pass and, once, for the update that is sent. With fewer
fraction bits, rounding is stochastic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.trainer.dither import Dither
from fedlearn.trainer.exact import Real

FRACTION_BITS = 8

# Symmetric int8 weights never hold -128 (TFLite quantisation specification).
WEIGHT_LIMIT = 127
# Keeps accumulator plus bias within int32 for any input: half of the range for each.
BIAS_LIMIT = (1 << 30) - 1


class Parameter:
    """One tensor, shape (C, ...) with the output channel first.

    A frozen weight is a view of the model's bytes.
    """

    def __init__(self, values: NDArray[np.int8] | NDArray[np.int32]) -> None:
        self.shape, self._dtype = values.shape, values.dtype
        self._is_weight = values.dtype == np.int8
        self._real = np.float32 if self._is_weight else np.float64
        self._grid: NDArray[Any] = values
        self._start: NDArray[Any] | None = None

    @property
    def grid(self) -> NDArray[Any]:
        """What the forward pass uses: the values on the model's integer grid.

        float32 for weights (the operand of the exact matrix product), float64 for biases. A frozen
        parameter makes it anew each time.
        """
        return self._grid.astype(self._real, copy=False)

    def thaw(
        self,
        fraction_bits: int = FRACTION_BITS,
        dither: Dither | None = None,
        *,
        anchored: bool = False,
    ) -> None:
        """Make it trainable; a frozen one is a view of the file.

        `dither` rounds stochastically; without it steps are rounded to nearest. `anchored` keeps
        the values of now for a `pull`.
        """
        self._one = float(1 << fraction_bits)
        self._limit = (WEIGHT_LIMIT if self._is_weight else BIAS_LIMIT) * self._one
        self._dither = dither
        store = np.int16 if self._is_weight else np.int64
        self._grid = self.grid
        self._fixed: NDArray[Any] = (self._grid * self._one).astype(store)
        self._scratch: NDArray[Any] = np.empty(self.shape, self._real)
        self._start = self._fixed.copy() if anchored else None

    def step(self, gradient: Real, rate: NDArray[np.float64] | float, pull: float = 0.0) -> None:
        """Subtract `rate * gradient` grid steps; `rate` broadcasts against the shape.

        `pull` is the share of the way back to where an anchored parameter began (FedProx).
        """
        work = self._scratch
        factors = np.asarray(rate, work.dtype) * work.dtype.type(self._one)
        np.multiply(gradient, factors, out=work)
        if pull and self._start is not None:
            away = np.subtract(self._fixed, self._start, dtype=work.dtype)
            away *= work.dtype.type(pull)
            work += away
        if self._dither is None:
            np.rint(work, out=work)
            np.subtract(self._fixed, work, out=work, casting="unsafe")
        else:
            np.subtract(self._fixed, work, out=work, casting="unsafe")
            work += self._dither.draw(work.shape)
            np.floor(work, out=work)
        # Not np.clip, whose wrapper takes longer than the two of them.
        np.maximum(work, -self._limit, out=work)
        np.minimum(work, self._limit, out=work)
        self._put(work)

    def _put(self, work: NDArray[Any]) -> None:
        np.copyto(self._fixed, work, casting="unsafe")
        np.multiply(work, work.dtype.type(1.0 / self._one), out=self._grid)
        np.rint(self._grid, out=self._grid)

    def snapshot(self) -> NDArray[Any]:
        """A copy of the values with their fraction, for `restore`."""
        return self._fixed.copy()

    def restore(self, snapshot: NDArray[Any]) -> None:
        """Go back to a snapshot."""
        np.copyto(self._scratch, snapshot, casting="unsafe")
        self._put(self._scratch)

    def values(self) -> NDArray[Any]:
        """The values on the grid, in the tensor's own dtype, int8 or int32."""
        return self._grid.astype(self._dtype)
