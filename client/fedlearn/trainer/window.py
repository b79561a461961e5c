# SPDX-License-Identifier: Apache-2.0
"""The sliding window of convolutions: its geometry, patches, and their adjoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError
from fedlearn.model import Operator, Tensor
from fedlearn.model.schema import Padding
from fedlearn.trainer.exact import Real


@dataclass(frozen=True, slots=True)
class Axis:
    """The window along one axis: how many places it takes, and the padding before and behind."""

    size: int
    kernel: int
    stride: int
    dilation: int
    padding: Padding

    def __post_init__(self) -> None:
        if min(self.size, self.kernel, self.stride, self.dilation) < 1 or self.places < 1:
            raise ModelError(f"a window of {self.kernel} by steps of {self.stride} is not possible")

    @property
    def places(self) -> int:
        """Number of outputs (TFLite's ComputeOutSize)."""
        if self.padding is Padding.SAME:
            return -(-self.size // self.stride)
        return (self.size - self.span) // self.stride + 1

    @property
    def span(self) -> int:
        """Input cells from the first to the last tap of the kernel."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def before(self) -> int:
        """Zeros before the input; an odd total has its greater half behind it."""
        return max((self.places - 1) * self.stride + self.span - self.size, 0) // 2

    @property
    def padded(self) -> int:
        """Cells that the window sees, padding included."""
        return max((self.places - 1) * self.stride + self.span, self.before + self.size)

    def taps(self, tap: int) -> slice:
        """The padded cells that kernel position `tap` meets over all places."""
        start = tap * self.dilation
        return slice(start, start + (self.places - 1) * self.stride + 1, self.stride)


@dataclass(frozen=True, slots=True)
class Window:
    """A two-dimensional window over NHWC tensors."""

    rows: Axis
    columns: Axis

    def require(self, operator: Operator, output: Tensor) -> None:
        """Raise ModelError unless the operator's output has our places."""
        places = (self.rows.places, self.columns.places)
        if output.shape[1:3] != places:
            raise ModelError(
                f"operator {operator.index} ({operator.name}): {output.shape} for {places} places"
            )

    def pad(self, x: NDArray[np.float32], fill: float = 0.0) -> NDArray[np.float32]:
        """Surround (N, H, W, C) with the padding that the window sees, zeros or `fill`."""
        rows, columns = self.rows, self.columns
        if rows.padded == rows.size and columns.padded == columns.size:
            return np.ascontiguousarray(x)
        padded = np.full((len(x), rows.padded, columns.padded, x.shape[3]), fill, np.float32)
        padded[self.inside()] = x
        return padded

    def inside(self) -> tuple[slice, slice, slice]:
        """Where the input lies in what `pad` makes."""
        rows, columns = self.rows, self.columns
        return (
            slice(None),
            slice(rows.before, rows.before + rows.size),
            slice(columns.before, columns.before + columns.size),
        )

    def patches(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Every place's patch as a row: (N, H, W, C) -> (N * places, KH * KW * C)."""
        return self._patches(self.pad(x), 0, self.rows.places)

    def blocks(self, x: NDArray[np.float32], numbers: int) -> Iterator[NDArray[np.float32]]:
        """The rows of `patches` in their order, at most so many numbers of them at a time.

        A line of places is the least that is made.
        """
        lines, padded = self.rows.places, self.pad(x)
        line = self.columns.places * self.rows.kernel * self.columns.kernel * x.shape[3]
        samples, most = max(numbers // (line * lines), 1), max(numbers // line, 1)
        for start in range(0, len(x), samples):
            for first in range(0, lines, most):
                count = min(most, lines - first)
                yield self._patches(padded[start : start + samples], first, count)

    def _patches(self, padded: NDArray[np.float32], first: int, lines: int) -> NDArray[np.float32]:
        """The patches of so many lines of places from the `first` on."""
        rows, columns = self.rows, self.columns
        padded = padded[:, first * rows.stride :]
        batch, down, right, channel = padded.strides
        view = np.lib.stride_tricks.as_strided(
            padded,
            (len(padded), lines, columns.places, rows.kernel, columns.kernel, padded.shape[3]),
            (
                batch,
                down * rows.stride,
                right * columns.stride,
                down * rows.dilation,
                right * columns.dilation,
                channel,
            ),
            writeable=False,
        )
        return view.reshape(len(padded) * lines * columns.places, -1)

    def scatter(self, patches: Real, channels: int) -> NDArray[np.float32]:
        """Adjoint of `patches`: add each patch back where it was taken from; (N, H, W, C).

        A row of a patch is added as a whole, for all places at once that lie so far apart that
        their patches do not overlap. The order of the additions is fixed, and they are exact while
        sums stay below 2^24.
        """
        rows, columns = self.rows, self.columns
        grid = patches.reshape(
            -1, rows.places, columns.places, rows.kernel, columns.kernel, channels
        )
        padded = np.zeros((len(grid), rows.padded, columns.padded, channels), np.float32)
        batch, down, right, channel = padded.strides
        apart = -(-columns.span // columns.stride)
        strides = (
            batch,
            down * rows.stride,
            right * columns.stride * apart,
            right * columns.dilation,
            channel,
        )
        for row in range(rows.kernel):
            for first in range(min(apart, columns.places)):
                part = grid[:, :, first::apart, row]
                cells = padded[:, row * rows.dilation :, first * columns.stride :]
                np.lib.stride_tricks.as_strided(cells, part.shape, strides)[...] += part
        return padded[self.inside()]

    def mirrored(self, grid: NDArray[np.float32]) -> tuple[Window, NDArray[np.float32]]:
        """The adjoint of a convolution with a stride of 1, which is one with a mirrored kernel.

        Returns its window, which has a place for each cell of our input, and what it slides over:
        (N, rows, columns, C) of our places with zeros around them.
        """
        rows, columns = (
            Axis(axis.size + axis.span - 1, axis.kernel, 1, axis.dilation, Padding.VALID)
            for axis in (self.rows, self.columns)
        )
        top, left = (axis.span - 1 - axis.before for axis in (self.rows, self.columns))
        padded = np.zeros((len(grid), rows.size, columns.size, grid.shape[3]), np.float32)
        padded[:, top : top + grid.shape[1], left : left + grid.shape[2]] = grid
        return Window(rows, columns), padded
