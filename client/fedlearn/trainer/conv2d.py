# SPDX-License-Identifier: Apache-2.0
"""CONV_2D as a matrix product over patches (im2col)."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator
from fedlearn.model.flatbuffer import Table
from fedlearn.model.schema import Padding
from fedlearn.trainer.exact import Real, product
from fedlearn.trainer.weighted import WeightedLayer
from fedlearn.trainer.window import Axis, Window

# Numbers in the patches that are made at a time where none are kept: 1 MiB stays in a cache, and is
# all the memory they take.
_BLOCK = 1 << 18


def convolution_options(operator: Operator) -> Table:
    """The options of a convolution; they cannot be left out of a file that is whole."""
    if operator.options is None:
        raise ModelError(f"operator {operator.index} ({operator.name}) has no options")
    return operator.options


class Conv2D(WeightedLayer):
    """Weights (C, KH, KW, C_in); the patches of a batch are kept for their gradient."""

    kept = ("_open", "_patches")
    _patches: NDArray[np.float32]

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        options = convolution_options(operator)
        _, height, width, self._channels = self.input.shape
        _, rows, columns, depth = model.tensors[self.weight_index].shape
        if depth != self._channels:
            raise ModelError(f"operator {operator.index}: grouped convolutions cannot be trained")
        padding = Padding(options.scalar(0, "b"))
        self._window = Window(
            Axis(height, rows, options.scalar(2, "i", 0), options.scalar(5, "i", 1), padding),
            Axis(width, columns, options.scalar(1, "i", 0), options.scalar(4, "i", 1), padding),
        )
        self._window.require(operator, self.output)

    def values(self) -> int:
        """The outputs and the patches."""
        places = self._window.rows.places * self._window.columns.places
        return super().values() + places * prod(self.weight.shape[1:])

    def _accumulate(self, x: NDArray[np.float32]) -> Real:
        weight = self.weight.grid.T
        if self.trains_weight:
            self._patches = self._window.patches(x)
            return product(self._patches, weight)
        sums: list[Any] = [product(part, weight) for part in self._window.blocks(x, _BLOCK)]
        total: Real = sums[0] if len(sums) == 1 else np.concatenate(sums)
        return total

    def _gradient(self, errors: NDArray[np.float32]) -> Real:
        return product(errors.T, self._patches)

    def _to_input(self, errors: NDArray[np.float32]) -> NDArray[np.float32]:
        rows, columns = self._window.rows, self._window.columns
        if rows.kernel == columns.kernel == rows.stride == columns.stride == 1:
            below = product(errors, self.weight.grid).astype(np.float32, copy=False)
            return below.reshape(-1, rows.size, columns.size, self._channels)
        grid = errors.reshape(-1, rows.places, columns.places, errors.shape[1])
        if rows.stride == columns.stride == 1:
            weight, back = self._mirrored(), self._correlate
            patch = rows.size * columns.size * len(weight)
        else:
            weight, back = self.weight.grid, self._scatter
            patch = rows.places * columns.places * weight.shape[1]
        below = np.empty((len(grid), rows.size, columns.size, self._channels), np.float32)
        samples = max(_BLOCK // patch, 1)
        for start in range(0, len(grid), samples):
            block = slice(start, start + samples)
            below[block] = back(grid[block], weight)
        return below

    def _mirrored(self) -> NDArray[np.float32]:
        """The weights from the last tap to the first, (KH * KW * C, C_in)."""
        rows, columns = self._window.rows, self._window.columns
        taps = self.weight.grid.reshape(-1, rows.kernel, columns.kernel, self._channels)
        return taps[:, ::-1, ::-1].transpose(1, 2, 0, 3).reshape(-1, self._channels)

    def _correlate(self, grid: NDArray[np.float32], weight: NDArray[np.float32]) -> Real:
        """With a stride of 1 the errors go back through a convolution with the mirrored weights."""
        back, padded = self._window.mirrored(grid)
        shape = (-1, back.rows.places, back.columns.places, self._channels)
        return product(back.patches(padded), weight).reshape(shape)

    def _scatter(self, grid: NDArray[np.float32], weight: NDArray[np.float32]) -> Real:
        rows = grid.reshape(-1, grid.shape[3])
        return self._window.scatter(product(rows, weight), self._channels)
