# SPDX-License-Identifier: Apache-2.0
"""RESHAPE: the values stay, their order too."""

from __future__ import annotations

from fedlearn.trainer.layer import Array, Layer


class Reshape(Layer):
    """The output tensor has the shape, but for the batch, which is a constant in some files."""

    def forward(self, *inputs: Array) -> Array:
        """Same values, output's shape."""
        (x,) = inputs
        return x.reshape(len(x), *self.output.shape[1:])

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """Same errors, input's shape."""
        return (errors.reshape(len(errors), *self.input.shape[1:]),)
