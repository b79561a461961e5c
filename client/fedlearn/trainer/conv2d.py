# SPDX-License-Identifier: Apache-2.0
"""CONV_2D as a matrix product over patches (im2col)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator
from fedlearn.model.flatbuffer import Table
from fedlearn.model.schema import Activation, Padding
from fedlearn.trainer.exact import Real, product
from fedlearn.trainer.weighted import WeightedLayer
from fedlearn.trainer.window import Axis, Window


def convolution_options(operator: Operator) -> Table:
    """The options of a convolution; they cannot be left out of a file that is whole."""
    if operator.options is None:
        raise ModelError(f"operator {operator.index} ({operator.name}) has no options")
    return operator.options


class Conv2D(WeightedLayer):
    """Weights (C, KH, KW, C_in); the patches of a batch are kept for the gradient."""

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
        return super().values() + places * self.weight.grid[0].size

    def _activation(self) -> Activation:
        return Activation(convolution_options(self.operator).scalar(3, "b"))

    def _accumulate(self, x: NDArray[np.float32]) -> Real:
        self._patches = self._window.patches(x)
        return product(self._patches, self.weight.grid.T)

    def _gradient(self, errors: NDArray[np.float32]) -> Real:
        return product(errors.T, self._patches)

    def _to_input(self, errors: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._window.scatter(product(errors, self.weight.grid), self._channels)
