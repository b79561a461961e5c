# SPDX-License-Identifier: Apache-2.0
"""Tails: which part of a model is trained.

A tail is named by the layers with weights that are trained, counted from the output: "last" is the
last one, a number that many, "dense" the run of FULLY_CONNECTED layers at the end, "all" every one.
Every operator that depends on them needs a backward pass; what does not is the frozen prefix, see
`Prefix`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedlearn.errors import UnsupportedOperatorError
from fedlearn.model import Model, Operator
from fedlearn.trainer.operators import LAYERS
from fedlearn.trainer.tail import depending
from fedlearn.trainer.weighted import WeightedLayer
from fedlearn.wire.messages import TAILS, TrainableTensor

# A loss may take these into itself when they end the network.
ABSORBED = ("SOFTMAX", "LOGISTIC")
WEIGHTED = tuple(name for name, kind in LAYERS.items() if issubclass(kind, WeightedLayer))


def trainable_tensors(model: Model, tail: str) -> tuple[TrainableTensor, ...]:
    """The weights and biases that training the tail `tail` updates, in execution order.

    Raises UnsupportedOperatorError, naming the operator and the longest tail that would work, when
    an operator of the tail cannot be trained.
    """
    layers = weighted_operators(model)[-count_layers(model, tail) :]
    blocker = _blocker(model, layers)
    if blocker is not None:
        raise _unsupported(model, *blocker)
    found = [tensor for operator in layers for tensor in parameters(model, operator)]
    if not found:
        raise UnsupportedOperatorError(
            "the model has no layer with weights of its own that could be trained"
        )
    return tuple(found)


def weighted_operators(model: Model) -> list[Operator]:
    """The operators that have weights and lead to the answer, in execution order."""
    every = depending(model, range(len(model.operators)))
    return [op for op in every if op.name in WEIGHTED]


def count_layers(model: Model, tail: str) -> int:
    """How many layers with weights the tail has; ValueError for what names no tail."""
    layers = weighted_operators(model)
    if tail == "all":
        return len(layers)
    if tail == "last":
        return 1
    if tail == "dense":
        others = [at for at, op in enumerate(layers) if op.name != "FULLY_CONNECTED"]
        return len(layers) - (others[-1] + 1 if others else 0)
    if not tail.isascii() or not tail.isdigit() or int(tail) < 1:
        raise ValueError(f"no tail {tail!r}; there are {', '.join(TAILS)} and a number of layers")
    return min(int(tail), len(layers))


def parameters(model: Model, operator: Operator) -> list[TrainableTensor]:
    """The weight and the bias of one operator, as far as they can be trained."""
    numbers = [number for number in operator.inputs[1:3] if number >= 0]
    tensors = [model.tensors[number] for number in numbers]
    # A bias that the converter left out, or merged with an equal one, is not trained.
    return [
        TrainableTensor(tensor.index, tensor.name, tensor.shape, tensor.dtype)
        for tensor in tensors
        if tensor.is_constant and not model.is_shared(tensor.index)
    ]


def _blocker(model: Model, layers: Sequence[Operator]) -> tuple[Operator, str] | None:
    """The operator nearest to the output that keeps the layers from being trained, and why."""
    for operator in reversed(depending(model, {op.index for op in layers})):
        if operator.name in ABSORBED:
            continue
        if operator.name not in LAYERS:
            return operator, "it has no backward pass"
        if operator.name in WEIGHTED and not _weights_are_trainable(model, operator):
            return operator, "its weights are shared, not constant or not symmetric int8"
    return None


def _weights_are_trainable(model: Model, operator: Operator) -> bool:
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


def _unsupported(model: Model, blocker: Operator, reason: str) -> UnsupportedOperatorError:
    working = longest(model)
    hint = (
        f"a tail of {working} layers can be trained: {working}"
        if working > 1
        else "the tail 'last' can be trained"
        if working
        else "nothing behind it has weights, so this model cannot be trained"
    )
    return UnsupportedOperatorError(
        f"operator {blocker.index} ({blocker.name}) cannot be trained: {reason}", hint=hint
    )


def longest(model: Model) -> int:
    """Layers of the longest tail that can be trained; 0 if there is none."""
    layers = weighted_operators(model)
    count = 0
    while count < len(layers) and _blocker(model, layers[-count - 1 :]) is None:
        count += 1
    return count
