# SPDX-License-Identifier: Apache-2.0
"""Tails: which part of a model is trained.

A tail is everything from some operator to the output. Before it lies the frozen prefix, which the
real interpreter runs; in it every operator needs a backward pass, so a tail ends (seen from the
output) at the first operator that cannot be trained.
"""

from __future__ import annotations

from fedlearn.errors import UnsupportedOperatorError
from fedlearn.model.model import Model, Operator
from fedlearn.wire.messages import TAILS, TrainableTensor

# Operators that carry weights, and those that only pass errors on.
WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
TRAINABLE = (*WEIGHTED, "RESHAPE", "SOFTMAX")


def trainable_tensors(model: Model, tail: str) -> tuple[TrainableTensor, ...]:
    """The weights and biases that training the tail `tail` updates, in execution order.

    "last" is the last layer with weights, "dense" the run of FULLY_CONNECTED layers at the end,
    "all" the whole network. Raises UnsupportedOperatorError, naming the operator and the longest
    tail that would work, when an operator of the tail cannot be trained.
    """
    if tail not in TAILS:
        raise ValueError(f"no tail {tail!r}; there are {', '.join(TAILS)}")
    start = _tail_start(model, tail)
    blocker = last_untrainable(model)
    if blocker is not None and blocker.index >= start:
        raise _unsupported(model, blocker)
    found: list[TrainableTensor] = []
    for operator in model.operators[start:]:
        if operator.name in WEIGHTED:
            found.extend(_parameters(model, operator))
    if not found:
        raise UnsupportedOperatorError(
            "the model has no layer with weights of its own that could be trained"
        )
    return tuple(found)


def last_untrainable(model: Model) -> Operator | None:
    """The operator nearest to the output that has no backward pass."""
    for operator in reversed(model.operators):
        is_last = operator is model.operators[-1]
        if (
            operator.name not in TRAINABLE
            or (operator.name == "SOFTMAX" and not is_last)
            or not _weights_are_trainable(model, operator)
        ):
            return operator
    return None


def _weights_are_trainable(model: Model, operator: Operator) -> bool:
    if operator.name not in WEIGHTED:
        return True
    if len(operator.inputs) < 2 or operator.inputs[1] < 0:
        return False
    weight = model.tensors[operator.inputs[1]]
    return (
        weight.dtype == "int8"
        and weight.is_constant
        and len(weight.scales) > 0
        and not weight.zero_points.any()
        and not model.is_shared(weight.index)
    )


def _tail_start(model: Model, tail: str) -> int:
    if tail == "all":
        return 0
    start = len(model.operators)
    for operator in reversed(model.operators):
        if operator.name in WEIGHTED:
            if tail == "dense" and operator.name != "FULLY_CONNECTED":
                break
            start = operator.index
            if tail == "last":
                break
    return start


def _parameters(model: Model, operator: Operator) -> list[TrainableTensor]:
    numbers = [number for number in operator.inputs[1:3] if number >= 0]
    tensors = [model.tensors[number] for number in numbers]
    # A bias that the converter left out, or merged with an equal one, is not trained.
    return [
        TrainableTensor(tensor.index, tensor.name, tensor.shape, tensor.dtype)
        for tensor in tensors
        if tensor.is_constant and not model.is_shared(tensor.index)
    ]


def _unsupported(model: Model, blocker: Operator) -> UnsupportedOperatorError:
    reason = (
        "its weights are shared, not constant or not symmetric int8"
        if blocker.name in TRAINABLE
        else "it has no backward pass"
    )
    working = [tail for tail in ("dense", "last") if _tail_start(model, tail) > blocker.index]
    has_weights = any(op.name in WEIGHTED for op in model.operators[blocker.index + 1 :])
    if working:
        hint = f"the tail {working[0]!r} can be trained"
    elif has_weights:
        hint = f"only what follows operator {blocker.index} can be trained"
    else:
        hint = "nothing behind it has weights, so this model cannot be trained"
    return UnsupportedOperatorError(
        f"operator {blocker.index} ({blocker.name}) cannot be trained: {reason}", hint=hint
    )
