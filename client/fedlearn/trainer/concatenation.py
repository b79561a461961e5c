# SPDX-License-Identifier: Apache-2.0
"""CONCATENATION: several tensors side by side along one axis."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator
from fedlearn.trainer.layer import Array, Layer


class Concatenation(Layer):
    """Any number of activations (N, ...) or constants (1, ...), all in the output's scale."""

    arity = None

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        name = f"operator {operator.index} ({operator.name})"
        rank = len(self.output.shape)
        options = operator.options
        axis, activation = (options.scalar(0, "i"), options.scalar(1, "b")) if options else (0, 0)
        if activation:
            raise ModelError(f"{name}: a fused activation is not supported")
        self._axis = axis + rank if axis < 0 else axis
        if not 0 < self._axis < rank:
            raise ModelError(f"{name}: axis {axis} does not lie within a sample")
        for tensor in self.inputs:
            if (tensor.scale, tensor.zero_point) != (self.output.scale, self.output.zero_point):
                raise ModelError(f"{name}: {tensor.name} is in another scale than the output")
            if self._others(tensor.shape) != self._others(self.output.shape) or (
                tensor.is_constant and tensor.shape[0] != 1
            ):
                raise ModelError(f"{name}: {tensor.name} is {tensor.shape}")
        self._ends = list(accumulate(tensor.shape[self._axis] for tensor in self.inputs))
        if self._ends[-1] != self.output.shape[self._axis]:
            raise ModelError(f"{name}: {self._ends[-1]} values become {self.output.shape}")

    def _others(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes of a sample that all tensors have alike, and the rank."""
        return (len(shape), *shape[1 : self._axis], *shape[self._axis + 1 :])

    def forward(self, *inputs: Array) -> Array:
        """The inputs in their order."""
        count = max(len(x) for x in inputs)
        parts = [np.broadcast_to(x, (count, *x.shape[1:])) for x in inputs]
        return np.concatenate(parts, axis=self._axis)

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """To each input its part."""
        parts = np.split(errors, self._ends[:-1], axis=self._axis)
        return tuple(
            part if is_wanted else None for part, is_wanted in zip(parts, wanted, strict=True)
        )
