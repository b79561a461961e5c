# SPDX-License-Identifier: Apache-2.0
"""The trained part of a model: the operators that depend on what is trained.

What does not depend on it is the frozen prefix; also a branch that joins the tail later. So a tail
is a graph: it has one entry for each tensor that the prefix hands over, and errors of a tensor that
several operators read add up.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod, sqrt
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import UnsupportedOperatorError
from fedlearn.model import Model, Operator
from fedlearn.model.activation import activation_of
from fedlearn.model.schema import Activation
from fedlearn.trainer.dither import Dither
from fedlearn.trainer.error_quantisation import QUANTISERS
from fedlearn.trainer.layer import Array, Layer
from fedlearn.trainer.parameters import FRACTION_BITS, Parameter
from fedlearn.trainer.reshape import Reshape
from fedlearn.trainer.section import Features, Section, leading
from fedlearn.trainer.weighted import WeightedLayer

Values = dict[int, NDArray[np.int8] | NDArray[np.int32]]


def depending(model: Model, operators: Collection[int]) -> tuple[Operator, ...]:
    """The operators with these numbers and all that lie between them and the answer, in order.

    What the answer does not depend on is left out: nothing could train it.
    """
    made: set[int] = set()
    found = []
    for operator in leading(model, [model.exit]):
        if operator.index in operators or made.intersection(operator.inputs):
            found.append(operator)
            made.update(operator.outputs)
    return tuple(found)


def require_plain(model: Model, operator: Operator) -> None:
    """Raise UnsupportedOperatorError for a last SOFTMAX that is not the one in the loss."""
    if operator.name != "SOFTMAX":
        return
    name = f"operator {operator.index} (SOFTMAX)"
    beta = operator.options.scalar(0, "f") if operator.options else 0.0
    if beta != 1.0:
        raise UnsupportedOperatorError(
            f"{name} multiplies its input by a beta of {beta:g}, which the loss does not",
            hint="convert the model with a beta of 1",
        )
    if prod(model.tensors[operator.outputs[0]].shape[1:-1]) != 1:
        raise UnsupportedOperatorError(
            f"{name} has several answers for a sample, the loss takes one"
        )


class Tail(Section):
    """The operators from the first one that is trained to the outputs that a loss judges.

    These outputs are the accumulators of a last layer with weights, else the last int8 tensor in
    real units. An operator that the loss takes into itself (a SOFTMAX, a LOGISTIC) is left out.
    """

    def __init__(
        self,
        model: Model,
        tensors: Collection[int],
        *,
        absorbed: str | None = "SOFTMAX",
        errors: str = "int8",
    ) -> None:
        """Build the layers that train the tensors with these numbers, with this type of errors.

        Raises UnsupportedOperatorError when a tensor is no weight or bias of this model, or when an
        operator between it and the output cannot be trained.
        """
        wanted = set(tensors)
        users = [op.index for op in model.operators if wanted.intersection(op.inputs[1:3])]
        if not users:
            raise UnsupportedOperatorError("the model has none of the tensors that are to train")
        operators = list(depending(model, users))
        if operators and operators[-1].name == absorbed:
            require_plain(model, operators.pop())
        super().__init__(model, operators)
        for layer in self.layers:
            layer.quantise = QUANTISERS[errors]
        self._mark(wanted)
        self.thaw()
        self._head = self._find_head()

    def thaw(
        self,
        fraction_bits: int = FRACTION_BITS,
        dither: Dither | None = None,
        *,
        anchored: bool = False,
    ) -> None:
        """Start from the model's weights, with this rounding; `anchored` for a `pull`."""
        for parameter in self._parameters():
            parameter.thaw(fraction_bits, dither, anchored=anchored)

    def _parameters(self) -> list[Parameter]:
        return [parameter for layer in self.weighted for parameter in layer.parameters()]

    def _mark(self, left: set[int]) -> None:
        for layer in self.weighted:
            left = left - layer.mark(left)
        if left:
            raise UnsupportedOperatorError(
                f"tensors {sorted(left)} are no weights or biases of the tail"
            )

    def _find_head(self) -> int:
        """The place of the layer whose outputs the loss judges; behind it only RESHAPEs follow."""
        at = len(self.layers) - 1
        while at > 0 and isinstance(self.layers[at], Reshape):
            at -= 1
        last = self.layers[at]
        return at if self._is_fine(last) else len(self.layers) - 1

    @property
    def logits(self) -> int | None:
        """The tensor whose int8 values do not matter to the loss: it takes the accumulators."""
        head = self.layers[self._head]
        return head.output.index if self._is_fine(head) else None

    @property
    def weighted(self) -> list[WeightedLayer]:
        """The layers with weights, in execution order."""
        return [layer for layer in self.layers if isinstance(layer, WeightedLayer)]

    @property
    def outputs(self) -> int:
        """Numbers that the loss judges for each sample."""
        return prod(self.layers[self._head].output.shape[1:])

    def forward(self, features: Features, *, keeps: bool = True) -> Array:
        """Outputs float32 (N, C) in real units for a batch of features.

        Unless it `keeps` what `backward` needs, memory for one layer at a time is enough.
        """
        values = self.centred(features)
        for at, layer in enumerate(self.layers[: self._head + 1]):
            x = self.inputs_of(at, values)
            if at == self._head and self._is_fine(layer):
                y = layer.logits(*x)
            else:
                y = layer.forward(*x)
                if at == self._head:
                    y = y * np.float32(layer.output.scale)
            values[layer.output.index] = y
            if not keeps:
                layer.forget()
        return y.reshape(len(features[0]), -1)

    @staticmethod
    def _is_fine(layer: Layer) -> TypeGuard[WeightedLayer]:
        return isinstance(layer, WeightedLayer) and activation_of(layer.operator) is Activation.NONE

    def backward(self, errors: Array) -> None:
        """Leave in each layer the gradients for errors (N, C) of the outputs."""
        head = self.layers[self._head]
        pending = {head.output.index: errors.reshape(len(errors), *head.output.shape[1:])}
        for layer in reversed(self.layers[: self._head + 1]):
            own = pending.pop(layer.output.index, None)
            if own is None:
                continue
            wanted = tuple(tensor.index in self.made for tensor in layer.inputs)
            below_all = layer.backward(own, wanted)
            layer.forget()
            for tensor, below in zip(layer.inputs, below_all, strict=True):
                if below is None or tensor.index not in self.made:
                    continue
                known = pending.get(tensor.index)
                pending[tensor.index] = below if known is None else known + below

    def gradient_norm(self) -> float:
        """The l2 norm of all gradients of the last `backward`, summed over the batch."""
        total = 0.0
        # Not sum(): from Python 3.12 on it makes up for what float additions lose.
        for layer in self.weighted:
            total += layer.gradient_square()
        return sqrt(total)

    def update(self, rate: float, pull: float = 0.0) -> None:
        """One SGD step; `rate` is the learning rate over the batch size, `pull` FedProx's."""
        for layer in self.weighted:
            layer.update(rate, pull)

    def snapshot(self) -> list[NDArray[Any]]:
        """Copies of what is trained, for `restore`."""
        return [parameter.snapshot() for parameter in self._parameters()]

    def restore(self, snapshot: list[NDArray[Any]]) -> None:
        """Go back to a snapshot."""
        for parameter, values in zip(self._parameters(), snapshot, strict=True):
            parameter.restore(values)

    def trained(self) -> Values:
        """Tensor number -> its values now, in the tensor's dtype and shape."""
        values: Values = {}
        for layer in self.weighted:
            values.update(layer.trained())
        return {
            index: array.reshape(self._model.tensors[index].shape)
            for index, array in values.items()
        }

    def values(self) -> int:
        """Numbers that a sample makes in a forward pass, the patches of convolutions included."""
        return sum(layer.values() for layer in self.layers)

    def multiply_adds(self) -> int:
        """Multiply-adds of one sample's forward pass through the tail."""
        return sum(layer.multiply_adds() for layer in self.weighted)
