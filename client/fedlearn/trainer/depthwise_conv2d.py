# SPDX-License-Identifier: Apache-2.0
"""DEPTHWISE_CONV_2D: each channel has a window of its own.

There is no matrix product to hand to a BLAS: for each tap of the kernel, cells are multiplied and
added element by element. What counts is that NumPy's inner loops are long and their operands stay
in the cache, so a line of an image (columns and channels) is one run where the stride is 1, and a
few images are worked on at a time. Products and, up to a bound, sums are exact in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.model import Model, Operator
from fedlearn.model.schema import Padding
from fedlearn.runtime import is_litert
from fedlearn.trainer.conv2d import convolution_options
from fedlearn.trainer.exact import EXACT_TERMS, Real
from fedlearn.trainer.requantisation import Arithmetic
from fedlearn.trainer.weighted import WeightedLayer
from fedlearn.trainer.window import Axis, Window

# Numbers that one step works on: 128 KiB, so that its operands share a small second-level cache.
_BLOCK = 1 << 15


class DepthwiseConv2D(WeightedLayer):
    """Weights (1, KH, KW, C_in * multiplier), arranged as (KH * KW, C)."""

    channel_axis = 3
    terms_axis = 0
    kept = ("_open", "_padded")
    _padded: NDArray[np.float32]

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        options = convolution_options(operator)
        _, height, width, self._channels = self.input.shape
        _, rows, columns, channels = model.tensors[self.weight_index].shape
        # The file's depth_multiplier is redundant, and zero in some: the shapes decide.
        self._multiplier = channels // self._channels
        padding = Padding(options.scalar(0, "b"))
        self._window = Window(
            Axis(height, rows, options.scalar(2, "i", 0), options.scalar(6, "i", 1), padding),
            Axis(width, columns, options.scalar(1, "i", 0), options.scalar(5, "i", 1), padding),
        )
        self._window.require(operator, self.output)
        # One sample's outputs: a line of columns and channels is one axis where it can be.
        lines, places = self._window.rows.places, self._window.columns.places
        self._is_run = self._window.columns.stride == 1
        self._outputs = (lines, places * channels) if self._is_run else (lines, places, channels)

    def arithmetics(self) -> tuple[Arithmetic, ...]:
        """The one kernel in which the two runtimes round differently."""
        usual = Arithmetic.TWICE_VECTORS if is_litert() else Arithmetic.TWICE_AWAY
        return (usual, *super().arithmetics())

    def _arranged(self, weight: NDArray[np.int8] | NDArray[np.int32]) -> NDArray[np.int8]:
        return weight.reshape(-1, weight.shape[-1]).astype(np.int8, copy=False)

    def _per_channel(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        return factors

    def _taps(self, padded: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """For each kernel position, the cells of (N, H, W, C) that it meets: (N, *outputs)."""
        rows, columns = self._window.rows, self._window.columns
        channels = padded.shape[3]
        if not self._is_run:
            return [
                padded[:, rows.taps(row), columns.taps(column)]
                for row in range(rows.kernel)
                for column in range(columns.kernel)
            ]
        lines = padded.reshape(len(padded), rows.padded, -1)
        starts = [column * columns.dilation * channels for column in range(columns.kernel)]
        return [
            lines[:, rows.taps(row), start : start + columns.places * channels]
            for row in range(rows.kernel)
            for start in starts
        ]

    def _weights(self) -> NDArray[np.float32]:
        """The weights of each tap, as long as the last axis of the outputs."""
        if not self._is_run:
            return self.weight.grid
        return np.tile(self.weight.grid, (1, self._window.columns.places))

    def _blocks(self, samples: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Runs of samples, each with room for a product of their outputs."""
        lines = self._outputs[0]
        # At most 514 lines, so that sums over a block's lines are exact.
        most = min(_BLOCK * lines // int(np.prod(self._outputs)), EXACT_TERMS) // lines
        size = min(max(most, 1), samples)
        scratch = np.empty((size, *self._outputs), np.float32)
        for start in range(0, samples, size):
            stop = min(start + size, samples)
            yield slice(start, stop), scratch[: stop - start]

    def _accumulate(self, x: NDArray[np.float32]) -> Real:
        padded = self._window.pad(x)
        if self._multiplier != 1:
            padded = np.repeat(padded, self._multiplier, axis=3)
        self._shape = padded.shape
        if self.trains_weight:
            self._padded = padded
        cells, weights = self._taps(padded), self._weights()
        # At most 255 * 128 a tap.
        exact = np.float32 if len(weights) <= EXACT_TERMS else np.float64
        total: NDArray[Any] = np.empty((len(x), *self._outputs), exact)
        for samples, product in self._blocks(len(x)):
            part = total[samples]
            np.multiply(cells[0][samples], weights[0], out=part)
            for tap in range(1, len(weights)):
                np.multiply(cells[tap][samples], weights[tap], out=product)
                part += product
        return total.reshape(-1, padded.shape[3])

    def _gradient(self, errors: NDArray[np.float32]) -> Real:
        channels = errors.shape[1]
        grid = errors.reshape(-1, *self._outputs)
        cells = self._taps(self._padded)
        # |x| <= 255 and |e| <= 127: a block's sums over lines are exact in float32, all others in
        # float64. Only a single sample may have more lines than that.
        exact = np.float32 if self._outputs[0] <= EXACT_TERMS else np.float64
        total = np.zeros((len(cells), *self._outputs[1:]), np.float64)
        for samples, product in self._blocks(len(grid)):
            for tap, seen in enumerate(cells):
                np.multiply(seen[samples], grid[samples], out=product)
                total[tap] += product.sum((0, 1), exact)
        return total.reshape(len(cells), -1, channels).sum(1)

    def _to_input(self, errors: NDArray[np.float32]) -> NDArray[np.float32]:
        grid = errors.reshape(-1, *self._outputs)
        below = np.zeros(self._shape, np.float32)
        cells, weights = self._taps(below), self._weights()
        for samples, product in self._blocks(len(grid)):
            for tap, weight in zip(cells, weights, strict=True):
                np.multiply(grid[samples], weight, out=product)
                tap[samples] += product
        inside = below[self._window.inside()]
        if self._multiplier == 1:
            return inside
        total = inside[..., :: self._multiplier].copy()
        for each in range(1, self._multiplier):
            total += inside[..., each :: self._multiplier]
        return total
