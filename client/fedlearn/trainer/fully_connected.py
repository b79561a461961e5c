# SPDX-License-Identifier: Apache-2.0
"""FULLY_CONNECTED: y = x W^T + b."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.trainer.exact import Real, product
from fedlearn.trainer.weighted import WeightedLayer


class FullyConnected(WeightedLayer):
    """Weights (C, K); whatever the input's rank, its values come in rows of K."""

    kept = ("_open", "_x")
    _x: NDArray[np.float32]

    def _scales(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """With one scale for all weights this kernel rounds the product to float32 first.

        See GetQuantizedConvolutionMultipler, which the convolutions and scales for each channel do
        not use.
        """
        first, second = super()._scales()
        return (first, second) if len(second) > 1 else (np.ones(1, np.float32), first * second)

    def _accumulate(self, x: NDArray[np.float32]) -> Real:
        self._shape = x.shape
        rows = x.reshape(-1, self.weight.shape[1])
        if self.trains_weight:
            self._x = rows
        return product(rows, self.weight.grid.T)

    def _gradient(self, errors: NDArray[np.float32]) -> Real:
        return product(errors.T, self._x)

    def _to_input(self, errors: NDArray[np.float32]) -> NDArray[np.float32]:
        return product(errors, self.weight.grid).astype(np.float32, copy=False).reshape(self._shape)
