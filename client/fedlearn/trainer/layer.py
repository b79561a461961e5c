# SPDX-License-Identifier: Apache-2.0
"""One operator, forward and backward.

Activations are float32 arrays of integers *without* their zero point, so that zero is real zero
(padding, a dead ReLU). Errors are float32 in real units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import isinf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator, Tensor
from fedlearn.model.activation import BOUNDS, activation_of
from fedlearn.trainer.error_quantisation import quantise
from fedlearn.trainer.requantisation import Arithmetic

Array = NDArray[np.float32]


class Layer(ABC):
    """An operator that the trainer runs itself, in a tail or, forward alone, before it.

    `inputs` are the tensors that `forward` takes, one array each: activations (N, ...), or
    constants in their own shape, which broadcast.
    """

    # How many of the operator's inputs are activations; None: all. The others are weights,
    # biases, shapes, paddings.
    arity: int | None = 1
    # The one of `arithmetics` that training uses on every machine; None: there is no choice.
    pinned: Arithmetic | None = None
    # Names of the attributes that only wait for the backward pass.
    kept: tuple[str, ...] = ()

    def __init__(self, model: Model, operator: Operator) -> None:
        self.operator = operator
        numbers = operator.inputs[: self.arity]
        if not numbers or min(numbers) < 0 or len(operator.outputs) != 1:
            raise ModelError(f"operator {operator.index} ({operator.name}) lacks a tensor")
        self.inputs = tuple(model.tensors[number] for number in numbers)
        self.output = model.tensors[operator.outputs[0]]
        for tensor in (*self.inputs, self.output):
            if min(tensor.shape, default=0) < 1 and tensor.shape:
                raise ModelError(f"operator {operator.index} ({operator.name}) has an empty tensor")
            if tensor.dtype != "int8" or len(tensor.scales) != 1:
                raise ModelError(
                    f"operator {operator.index} ({operator.name}): {tensor.name} is "
                    f"{tensor.dtype}, not int8 with one scale"
                )
        # How errors become integers; the float option of the trainer puts another in its place.
        self.quantise: Callable[[Array], tuple[Array, float]] = quantise
        # Who wants to know what the output would be without its clamp, see `report`.
        self.watch: Callable[[NDArray[Any]], None] | None = None

    @property
    def input(self) -> Tensor:
        """The first input, of most operators the only one."""
        return self.inputs[0]

    def arithmetics(self) -> tuple[Arithmetic, ...]:
        """The roundings that a kernel of this operator may use, the usual one first.

        Empty where there is nothing to choose.
        """
        return ()

    def choose(self, arithmetic: Arithmetic) -> None:
        """Compute with one of `arithmetics` from now on."""
        raise ValueError(f"{self.operator.name} has no {arithmetic}")

    def pin(self) -> None:
        """Compute from now on as every machine does, whatever kernels its runtime has."""
        if self.pinned is not None:
            self.choose(self.pinned)

    def forget(self) -> None:
        """Free what the last `forward` kept; a batch's activations are most of the memory."""
        for name in self.kept:
            vars(self).pop(name, None)

    def values(self) -> int:
        """Numbers that a sample makes in a forward pass."""
        return prod(self.output.shape[1:])

    def report(self, values: NDArray[Any]) -> None:
        """Every `forward` that requantises calls this with its output before any clamp.

        `values` are integers of the output's grid without the zero point, of any shape and dtype.
        """
        if self.watch is not None:
            self.watch(values)

    @abstractmethod
    def forward(self, *inputs: Array) -> Array:
        """Activations of the inputs to those of the output, (N, ...), as the runtime's kernel."""

    @abstractmethod
    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """Errors of the output to errors of each input, None where they are not wanted.

        Uses what the last `forward` saw; a layer with parameters keeps their gradients.
        """


def clamp(operator: Operator, output: Tensor) -> tuple[int, int]:
    """Lowest and highest value without zero point that the operator's activation leaves of int8."""
    zero, scale = output.zero_point, output.scale
    activation = activation_of(operator)
    if activation not in BOUNDS:
        raise ModelError(
            f"operator {operator.index} ({operator.name}): the fused activation "
            f"{activation.name} cannot be trained"
        )
    low, high = BOUNDS[activation]
    lowest, highest = -128 - zero, 127 - zero
    return (
        lowest if isinf(low) else max(lowest, _steps(low, scale)),
        highest if isinf(high) else min(highest, _steps(high, scale)),
    )


def _steps(real: float, scale: float) -> int:
    """Real units in steps of the output's grid; TFLite rounds half away from zero in float32."""
    ratio = float(np.float32(real) / np.float32(scale))
    return int(np.floor(abs(ratio) + 0.5)) * (1 if ratio >= 0 else -1)
