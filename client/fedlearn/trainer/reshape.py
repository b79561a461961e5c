# SPDX-License-Identifier: Apache-2.0
"""RESHAPE: the values stay, their order too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.trainer.layer import Layer


class Reshape(Layer):
    """The output tensor has the shape, but for the batch, which is a constant in some files."""

    def forward(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Same values, output's shape."""
        return x.reshape(len(x), *self.output.shape[1:])

    def backward(
        self, errors: NDArray[np.float32], *, to_input: bool
    ) -> NDArray[np.float32] | None:
        """Same errors, input's shape."""
        return errors.reshape(len(errors), *self.input.shape[1:]) if to_input else None
