# SPDX-License-Identifier: Apache-2.0
"""DEPTHWISE_CONV_2D: each channel has a window of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.model import Model, Operator
from fedlearn.model.schema import Activation, Padding
from fedlearn.runtime import is_litert
from fedlearn.trainer.conv2d import convolution_options
from fedlearn.trainer.exact import Real
from fedlearn.trainer.requantisation import Arithmetic
from fedlearn.trainer.weighted import WeightedLayer
from fedlearn.trainer.window import Axis, Window


class DepthwiseConv2D(WeightedLayer):
    """Weights (1, KH, KW, C_in * multiplier), arranged as (KH * KW, C)."""

    channel_axis = 3
    terms_axis = 0
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

    def arithmetics(self) -> tuple[Arithmetic, ...]:
        """The one kernel in which the two runtimes round differently."""
        usual = Arithmetic.TWICE_VECTORS if is_litert() else Arithmetic.TWICE_AWAY
        return (usual, *super().arithmetics())

    def _activation(self) -> Activation:
        return Activation(convolution_options(self.operator).scalar(4, "b"))

    def _arranged(self, weight: NDArray[np.int8] | NDArray[np.int32]) -> NDArray[np.int8]:
        return weight.reshape(-1, weight.shape[-1]).astype(np.int8, copy=False)

    def _per_channel(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        return factors

    def _taps(self) -> list[tuple[slice, slice, slice]]:
        """For each kernel position, the cells of the padded input that it meets."""
        rows, columns = self._window.rows, self._window.columns
        return [
            (slice(None), rows.taps(row), columns.taps(column))
            for row in range(rows.kernel)
            for column in range(columns.kernel)
        ]

    def _accumulate(self, x: NDArray[np.float32]) -> Real:
        padded = self._window.pad(x)
        if self._multiplier != 1:
            padded = np.repeat(padded, self._multiplier, axis=3)
        self._padded = padded
        # At most 255 * 127 a tap; in float64 the sum is exact for any kernel.
        rows, columns = self._window.rows.places, self._window.columns.places
        total = np.zeros((len(x), rows, columns, padded.shape[3]), np.float64)
        for cells, tap in zip(self._taps(), self.weight.grid, strict=True):
            total += padded[cells] * tap
        return total.reshape(-1, padded.shape[3])

    def _gradient(self, errors: NDArray[np.float32]) -> Real:
        shape = (-1, self._window.rows.places, self._window.columns.places, errors.shape[1])
        grid = errors.reshape(shape)
        return np.stack(
            [(self._padded[cells] * grid).sum((0, 1, 2), np.float64) for cells in self._taps()]
        )

    def _to_input(self, errors: NDArray[np.float32]) -> NDArray[np.float32]:
        patches = errors[:, None, :] * self.weight.grid
        channels = patches.reshape(len(errors), len(self.weight.grid), self._channels, -1)
        return self._window.scatter(channels.sum(axis=3), self._channels)
