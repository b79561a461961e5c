# SPDX-License-Identifier: Apache-2.0
"""Activations that limit an operator's values: fused behind it, or operators of their own."""

from __future__ import annotations

from math import inf

from fedlearn.model.graph import Operator
from fedlearn.model.schema import Activation

# Where the options of an operator keep the fused activation (schema.fbs of TFLite).
_SLOTS = {
    "ADD": 0,
    "AVERAGE_POOL_2D": 5,
    "CONCATENATION": 1,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 4,
    "DIV": 0,
    "FULLY_CONNECTED": 0,
    "MAX_POOL_2D": 5,
    "MUL": 0,
    "SUB": 0,
    "TRANSPOSE_CONV": 3,
}
_ALONE = ("RELU", "RELU6", "RELU_N1_TO_1")

# Least and greatest real value that each lets through; TANH and SIGN_BIT are no limits.
BOUNDS = {
    Activation.NONE: (-inf, inf),
    Activation.RELU: (0.0, inf),
    Activation.RELU6: (0.0, 6.0),
    Activation.RELU_N1_TO_1: (-1.0, 1.0),
}


def activation_of(operator: Operator) -> Activation:
    """The activation of an operator; NONE for those that cannot have one."""
    if operator.name in _ALONE:
        return Activation[operator.name]
    slot = _SLOTS.get(operator.name)
    if slot is None or operator.options is None:
        return Activation.NONE
    return Activation(operator.options.scalar(slot, "b"))
