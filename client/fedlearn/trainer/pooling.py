# SPDX-License-Identifier: Apache-2.0
"""AVERAGE_POOL_2D and MAX_POOL_2D: one value of each channel stands for a window of it.

Neither rescales: input and output share scale and zero point. Cells of the padding do not count.
Sum and maximum are taken along the rows first, then along the columns: KH + KW passes over the
data instead of KH * KW, and the same integers.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator
from fedlearn.model.schema import Padding
from fedlearn.trainer.grid import require_same_grid
from fedlearn.trainer.layer import Array, Layer, clamp
from fedlearn.trainer.window import Axis, Window

# Sums of raw int8 values, half a window added, stay below 2^24 up to here, and a float32 quotient
# below 129 is off by less than 1 / cells: its floor is the integer quotient.
_MOST_CELLS = 1 << 16


class Pool2D(Layer):
    """A window over (N, H, W, C) that keeps the channels apart, and a fused activation."""

    kept = ("_open", "_padded", "_greatest")
    # Where the activation let the last output through, if it changes anything.
    _open: NDArray[np.bool_]

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        require_same_grid(self)
        options = operator.options
        if options is None:
            raise ModelError(f"operator {operator.index} ({operator.name}) has no options")
        _, height, width, _ = self.input.shape
        padding = Padding(options.scalar(0, "b"))
        self._window = Window(
            Axis(height, options.scalar(4, "i"), options.scalar(2, "i"), 1, padding),
            Axis(width, options.scalar(3, "i"), options.scalar(1, "i"), 1, padding),
        )
        low, high = clamp(operator, self.output)
        zero = self.output.zero_point
        # The ends of int8 are no clamp here: no mean or maximum can pass them.
        self._lowest = low if low > -128 - zero else -np.inf
        self._highest = high if high < 127 - zero else np.inf
        self._clamps = np.isfinite(self._lowest) or np.isfinite(self._highest)

    @abstractmethod
    def _pool(self, x: Array) -> Array:
        """One value for each window of (N, H, W, C), before the activation."""

    @abstractmethod
    def _spread(self, errors: Array) -> Array:
        """Errors of the windows to errors of the padded input, element by element."""

    def _along_rows(self, ufunc: np.ufunc, padded: Array) -> Array:
        rows = self._window.rows
        total = padded[:, rows.taps(0)].copy()
        for tap in range(1, rows.kernel):
            ufunc(total, padded[:, rows.taps(tap)], out=total)
        return total

    def _reduce(self, ufunc: np.ufunc, padded: Array) -> Array:
        """Add or compare the cells of each window: (N, H, W, C) to (N, rows, columns, C)."""
        columns = self._window.columns
        partial = self._along_rows(ufunc, padded)
        total = partial[:, :, columns.taps(0)].copy()
        for tap in range(1, columns.kernel):
            ufunc(total, partial[:, :, columns.taps(tap)], out=total)
        return total

    def forward(self, *inputs: Array) -> Array:
        """The operator as the runtime computes it, bit by bit."""
        (x,) = inputs
        y = self._pool(x)
        if self._clamps:
            self._open = (y > self._lowest) & (y < self._highest)
            np.clip(y, self._lowest, self._highest, out=y)
        return y

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """Errors (N, rows, columns, C) to errors (N, H, W, C)."""
        if not wanted[0]:
            return (None,)
        if self._clamps:
            errors = errors * self._open
        return (self._spread(errors)[self._window.inside()],)


class AveragePool2D(Pool2D):
    """The mean of the raw int8 values, halves away from zero (TFLite's integer_ops/pooling.h)."""

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        _, height, width, _ = self.input.shape
        ones = self._window.pad(np.ones((1, height, width, 1), np.float32))
        # Cells of each window that lie inside the input, (1, rows, columns, 1).
        self._cells = self._reduce(np.add, ones)
        if self._cells.max() > _MOST_CELLS:
            raise ModelError(f"operator {operator.index}: a window of over {_MOST_CELLS} cells")

    def _pool(self, x: Array) -> Array:
        raw = self._reduce(np.add, self._window.pad(x))
        # The zero point goes back in: half away from zero is half away from the raw zero.
        raw += self._cells * np.float32(self.input.zero_point)
        mean = np.abs(raw)
        mean += np.floor(self._cells * np.float32(0.5))
        mean /= self._cells
        np.floor(mean, out=mean)
        np.copysign(mean, raw, out=mean)
        mean -= np.float32(self.output.zero_point)
        return mean

    def _spread(self, errors: Array) -> Array:
        rows, columns = self._window.rows, self._window.columns
        share = errors / self._cells
        count, _, _, channels = share.shape
        partial = np.zeros((count, rows.places, columns.padded, channels), np.float32)
        for tap in range(columns.kernel):
            partial[:, :, columns.taps(tap)] += share
        below = np.zeros((count, rows.padded, columns.padded, channels), np.float32)
        for tap in range(rows.kernel):
            below[:, rows.taps(tap)] += partial
        return below


class MaxPool2D(Pool2D):
    """The greatest value; its error goes to the first cell, row by row, that holds it."""

    _padded: Array
    _greatest: Array

    def _pool(self, x: Array) -> Array:
        self._padded = self._window.pad(x, -np.inf)
        self._greatest = self._reduce(np.maximum, self._padded)
        return self._greatest.copy() if self._clamps else self._greatest

    def _spread(self, errors: Array) -> Array:
        rows, columns = self._window.rows, self._window.columns
        left = errors.copy()
        below = np.zeros_like(self._padded)
        for row in range(rows.kernel):
            for column in range(columns.kernel):
                cells = (slice(None), rows.taps(row), columns.taps(column))
                part = left * (self._padded[cells] == self._greatest)
                below[cells] += part
                left -= part  # all of it or none: exact
        return below
