# SPDX-License-Identifier: Apache-2.0
"""RESHAPE, SQUEEZE, EXPAND_DIMS: the values stay, their order too."""

from __future__ import annotations

from math import prod

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator
from fedlearn.trainer.layer import Array, Layer


class Reshape(Layer):
    """The output tensor has the shape, but for the batch, which is a constant in some files."""

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        if prod(self.input.shape[1:]) != prod(self.output.shape[1:]):
            raise ModelError(
                f"operator {operator.index} ({operator.name}) mixes the samples: "
                f"{self.input.shape} to {self.output.shape}"
            )

    def forward(self, *inputs: Array) -> Array:
        """Same values, output's shape."""
        (x,) = inputs
        return x.reshape(len(x), *self.output.shape[1:])

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """Same errors, input's shape."""
        return (errors.reshape(len(errors), *self.input.shape[1:]),)
