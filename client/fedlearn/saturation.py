# SPDX-License-Identifier: Apache-2.0
"""Saturation: how much of a model's values sit at the ends of int8 on given samples.

A file that was calibrated on other data, or on a net before its training, cuts its activations off;
that costs far more accuracy than rounding, and training cannot mend what it does not see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.model import Model, Operator
from fedlearn.model.activation import activation_of
from fedlearn.model.schema import Activation
from fedlearn.runtime import Session
from fedlearn.trainer.layer import clamp
from fedlearn.trainer.operators import LAYERS
from fedlearn.trainer.tail import depending
from fedlearn.trainer.weighted import WeightedLayer

# As many samples tell the ends of a distribution well enough.
SAMPLES = 256
# Their outputs have a fixed scale, and are at its ends when the network is sure.
_SURE = ("SOFTMAX", "LOGISTIC", "TANH", "HARD_SWISH")
# What they put out is what they got.
_MOVERS = (
    "AVERAGE_POOL_2D",
    "CONCATENATION",
    "EXPAND_DIMS",
    "MAX_POOL_2D",
    "PAD",
    "RESHAPE",
    "SQUEEZE",
)
_LIMIT = 127


@dataclass(frozen=True, slots=True)
class Saturation:
    """One operator. `at_limit` is the share of its outputs that int8 may have cut off (0..1).

    `used` is the share of the 256 values of int8 from the least to the greatest output, and
    `weights_at_limit` the share of its weights at +-127, None without weights.
    """

    operator: int
    at_limit: float
    used: float
    weights_at_limit: float | None


def saturation(model: Model, inputs: NDArray[np.int8]) -> tuple[Saturation, ...]:
    """Run samples (N, ...) and look at every int8 tensor that leads to the answer."""
    operators = [
        op
        for op in depending(model, range(len(model.operators)))
        if op.name not in _MOVERS
        # The QUANTIZE of a float32 input makes what comes in, not what the model makes of it.
        and op.index != model.edges.quantize
        and len(op.outputs) == 1
        and model.tensors[op.outputs[0]].dtype == "int8"
        and len(model.tensors[op.outputs[0]].scales) == 1
    ]
    if not operators:
        return ()
    made = Session(model.cut([op.outputs[0] for op in operators])).run_all(inputs[:SAMPLES])
    return tuple(
        _look(model, operator, values) for operator, values in zip(operators, made, strict=True)
    )


def _look(model: Model, operator: Operator, values: NDArray[np.int8]) -> Saturation:
    least, greatest = int(values.min()), int(values.max())
    at_limit = 0.0
    if operator.name not in _SURE:
        low, high = _ends(model, operator)
        at_limit = float(((values <= low) | (values >= high)).mean())
    weights = None
    kind = LAYERS.get(operator.name)
    if kind is not None and issubclass(kind, WeightedLayer):
        weight = model.tensors[operator.inputs[1]]
        if weight.is_constant and weight.dtype == "int8":
            weights = float((np.abs(model.array(weight.index).astype(int)) >= _LIMIT).mean())
    return Saturation(operator.index, at_limit, (greatest - least + 1) / 256, weights)


def _ends(model: Model, operator: Operator) -> tuple[int, int]:
    """The values at and beyond which int8, and not a fused activation, cut off."""
    output = model.tensors[operator.outputs[0]]
    low, high = -128, 127
    activation = activation_of(operator)
    if activation is not Activation.NONE:
        lowest, highest = clamp(operator, output)
        # Where the activation has its end, the value there is its own, not a cut.
        low = -129 if lowest + output.zero_point >= low else low
        low = -129 if activation is Activation.RELU else low
        high = 128 if highest + output.zero_point < high else high
    return low, high
