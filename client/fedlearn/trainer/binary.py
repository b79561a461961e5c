# SPDX-License-Identifier: Apache-2.0
"""ADD and MUL: two operands, element by element, one of which may be broadcast.

An operand that serves many elements of the output (a channel's gate, a constant) gets the sum of
their errors. As every sum of the backward pass it is one of integers, so the errors are quantised
for it; without a broadcast there is no sum, and errors pass in float32.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from fedlearn.errors import ModelError
from fedlearn.trainer.fixed_point import Integers
from fedlearn.trainer.layer import Array
from fedlearn.trainer.lookup import LookupLayer
from fedlearn.trainer.runs import Shape, broadcast_run


class BinaryLayer(LookupLayer):
    """Operands are activations (N, ...) or constants; the output is (N, ...)."""

    arity = 2
    has_vector_code = True
    # Elements that the vector code takes at a time, and where one operand is a scalar for the run.
    lanes, scalar_lanes = 16, 16

    def _check(self) -> None:
        shapes = [self._padded(tensor.shape) for tensor in self.inputs]
        mixed = [
            tensor.name
            for tensor, shape in zip(self.inputs, shapes, strict=True)
            if (shape[0] != 1 if tensor.is_constant else len(tensor.shape) != len(shape))
        ]
        name = f"operator {self.operator.index} ({self.operator.name})"
        if mixed:
            raise ModelError(f"{name}: {mixed[0]} mixes the samples of a batch")
        if np.broadcast_shapes(*(shape[1:] for shape in shapes)) != self.output.shape[1:]:
            raise ModelError(f"{name}: {shapes} become {self.output.shape}")

    def _padded(self, shape: Shape) -> Shape:
        """A shape with the output's rank; absent axes come first and have length 1."""
        return (1,) * (len(self.output.shape) - len(shape)) + shape

    def _runs(self) -> tuple[int, int]:
        run, is_scalar = self._broadcast_run()
        return run, self.scalar_lanes if is_scalar else self.lanes

    def _broadcast_run(self) -> tuple[int, bool]:
        one, two = (self._padded(tensor.shape)[1:] for tensor in self.inputs)
        return broadcast_run(one, two)

    def _wrapped(self, values: Integers) -> Integers:
        """What is left of values when the zero point is added in 16 bits: both ends meet."""
        zero = self.output.zero_point
        return (values + (zero + (1 << 15))) % (1 << 16) - ((1 << 15) + zero)

    def forward(self, *inputs: Array) -> Array:
        """The operator as the runtime computes it, bit by bit."""
        self._operands = inputs
        return super().forward(*inputs)

    @abstractmethod
    def _slope(self, at: int) -> tuple[Array | None, float]:
        """Derivative by operand number `at`: integers (None: all one), and their scale."""

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """Errors times the slope, summed where an operand was broadcast."""
        passed = errors * self._open
        return tuple(
            self._to_operand(at, passed) if is_wanted else None
            for at, is_wanted in enumerate(wanted)
        )

    def _to_operand(self, at: int, errors: Array) -> Array:
        slope, scale = self._slope(at)
        shape = self._operands[at].shape
        if shape == errors.shape:
            return errors if slope is None else errors * (slope * np.float32(scale))
        integers, error_scale = self.quantise(errors)
        if slope is not None:
            integers = integers * slope  # at most 127 * 255
        axes = tuple(axis for axis, size in enumerate(shape) if size != errors.shape[axis])
        total = integers.sum(axes, np.float64, keepdims=True)
        return (total * (error_scale * scale)).astype(np.float32)
