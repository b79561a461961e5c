# SPDX-License-Identifier: Apache-2.0
"""PAD: real zeros around the values."""

from __future__ import annotations

import numpy as np

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator
from fedlearn.trainer.grid import require_same_grid
from fedlearn.trainer.layer import Array, Layer


class Pad(Layer):
    """Constant paddings (rank, 2), before and behind each axis but the batch.

    The kernel pads with the zero point, which is zero here.
    """

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        require_same_grid(self)
        if len(operator.inputs) != 2:
            raise ModelError(f"operator {operator.index} (PAD) has no paddings")
        widths = model.array(operator.inputs[1]).tolist()
        before, behind = zip(*widths, strict=True)
        sizes = zip(before, self.input.shape, behind, strict=True)
        # The batch is a constant in some files, so it is not compared.
        if min(*before, *behind) < 0 or tuple(map(sum, sizes))[1:] != self.output.shape[1:]:
            raise ModelError(f"operator {operator.index} (PAD): paddings {widths} do not fit")
        if before[0] or behind[0]:
            raise ModelError(f"operator {operator.index} (PAD) pads the batch")
        spans = zip(before[1:], self.input.shape[1:], strict=True)
        self._inside = (slice(None), *(slice(start, start + size) for start, size in spans))

    def forward(self, *inputs: Array) -> Array:
        """The values, surrounded by zeros."""
        (x,) = inputs
        y = np.zeros((len(x), *self.output.shape[1:]), np.float32)
        y[self._inside] = x
        return y

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """The errors of what is no padding."""
        return (errors[self._inside] if wanted[0] else None,)
