# SPDX-License-Identifier: Apache-2.0
"""An int8 `.tflite` as the float32 network that it stands for, for the float contenders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.model import Model, Operator
from fedlearn.model.schema import Activation, Padding

# Slots of their options: activation, strides (which are equal here).
_CONVOLUTIONS = {"CONV_2D": (3, 2), "DEPTHWISE_CONV_2D": (4, 2)}
_WEIGHTED = (*_CONVOLUTIONS, "FULLY_CONNECTED")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator; `weight` and `bias` are numbers of tensors, -1 where there are none."""

    name: str
    inputs: tuple[int, ...]
    output: int
    weight: int = -1
    bias: int = -1
    activation: Activation = Activation.NONE
    stride: int = 1
    same: bool = False


@dataclass(frozen=True, slots=True)
class FloatNet:
    """The operators before the trained ones, those from the first trained one on, and their entry.

    A SOFTMAX at the end is left to the loss.
    """

    prefix: tuple[Operation, ...]
    tail: tuple[Operation, ...]
    entry: int


def read(model: Model, layers: int) -> FloatNet:
    """Cut `model` before its last `layers` layers with weights."""
    operations = [_operation(op) for op in model.operators if op.name != "SOFTMAX"]
    weighted = [at for at, each in enumerate(operations) if each.weight >= 0]
    first = weighted[-layers]
    net = FloatNet(
        tuple(operations[:first]), tuple(operations[first:]), operations[first].inputs[0]
    )
    made = {net.entry, *(each.output for each in net.tail)}
    if any(not made.issuperset(each.inputs) for each in net.tail):
        raise ValueError("the tail takes more than one tensor from the prefix")
    return net


def _operation(operator: Operator) -> Operation:
    activations = 2 if operator.name == "ADD" else 1
    inputs, (output,) = operator.inputs[:activations], operator.outputs
    if operator.name not in _WEIGHTED:
        return Operation(operator.name, inputs, output)
    weight, bias = operator.inputs[1:3]
    options = operator.options
    assert options is not None
    if operator.name == "FULLY_CONNECTED":
        activation = Activation(options.scalar(0, "b"))
        return Operation(operator.name, inputs, output, weight, bias, activation)
    activation_slot, stride_slot = _CONVOLUTIONS[operator.name]
    return Operation(
        operator.name,
        inputs,
        output,
        weight,
        bias,
        Activation(options.scalar(activation_slot, "b")),
        options.scalar(stride_slot, "i"),
        Padding(options.scalar(0, "b")) is Padding.SAME,
    )


def real(model: Model, number: int) -> NDArray[np.float32]:
    """A constant in real units, in the file's shape."""
    tensor = model.tensors[number]
    shape = [1] * len(tensor.shape)
    shape[tensor.axis] = -1
    return model.array(number).astype(np.float32) * tensor.scales.reshape(shape)


def pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind an axis for SAME: an odd one goes behind."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
