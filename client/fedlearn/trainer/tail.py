# SPDX-License-Identifier: Apache-2.0
"""The trained part of a model: a chain of layers behind a frozen prefix."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError, UnsupportedOperatorError
from fedlearn.model import Model, Operator
from fedlearn.model.schema import Activation
from fedlearn.runtime import Session
from fedlearn.trainer.conv2d import Conv2D
from fedlearn.trainer.depthwise_conv2d import DepthwiseConv2D
from fedlearn.trainer.fully_connected import FullyConnected
from fedlearn.trainer.layer import Layer, WeightedLayer
from fedlearn.trainer.reshape import Reshape

LAYERS: dict[str, type[Layer]] = {
    "FULLY_CONNECTED": FullyConnected,
    "CONV_2D": Conv2D,
    "DEPTHWISE_CONV_2D": DepthwiseConv2D,
    "RESHAPE": Reshape,
}


class Tail:
    """The operators from the first one that is trained to the logits.

    The logits are the accumulators of the last layer with weights; a SOFTMAX behind it belongs to
    the loss.
    """

    def __init__(self, model: Model, tensors: Collection[int]) -> None:
        """Build the layers that train the tensors with these numbers.

        Raises UnsupportedOperatorError when a tensor is no weight or bias of this model, or when an
        operator between it and the output cannot be trained.
        """
        self._model = model
        start = self._first_operator(model, tensors)
        operators = list(model.operators[start:])
        if operators[-1].name == "SOFTMAX":
            operators.pop()
        try:
            self.layers = [self._layer(operator) for operator in operators]
        except (IndexError, ValueError) as error:  # shapes or options that no converter writes
            raise ModelError(f"the model is damaged: {error}") from error
        for before, behind in zip(self.layers, self.layers[1:], strict=False):
            if behind.input.index != before.output.index:
                raise UnsupportedOperatorError(
                    f"operator {behind.operator.index} ({behind.operator.name}) does not follow "
                    "the one before it: branches cannot be trained",
                    hint="choose a shorter tail",
                )
        last = self.layers[-1]
        if not isinstance(last, WeightedLayer):
            raise UnsupportedOperatorError(
                f"the network ends with {last.operator.name}, not with a layer that has weights"
            )
        if prod(last.output.shape[1:-1]) != 1 or last.activation is not Activation.NONE:
            raise UnsupportedOperatorError(
                f"operator {last.operator.index} ({last.operator.name}) does not end in one row of "
                "logits a sample: it has places, or an activation fused",
                hint="the network must end with a plain layer, or a SOFTMAX behind one",
            )
        self.logits_layer = last
        self._mark(tensors)

    @staticmethod
    def _first_operator(model: Model, tensors: Collection[int]) -> int:
        wanted = set(tensors)
        places = [op.index for op in model.operators if wanted.intersection(op.inputs[1:])]
        if not places:
            raise UnsupportedOperatorError("the model has none of the tensors that are to train")
        return min(places)

    def _layer(self, operator: Operator) -> Layer:
        kind = LAYERS.get(operator.name)
        if kind is None:
            raise UnsupportedOperatorError(
                f"operator {operator.index} ({operator.name}) cannot be trained",
                hint=f"train a tail behind it, that is, after operator {operator.index}",
            )
        return kind(self._model, operator)

    def _mark(self, tensors: Collection[int]) -> None:
        left = set(tensors)
        for layer in self.layers:
            if isinstance(layer, WeightedLayer):
                layer.trains_weight = layer.weight_index in left
                layer.trains_bias = layer.bias_index in left
                left -= {layer.weight_index, layer.bias_index}
        if left:
            raise UnsupportedOperatorError(
                f"tensors {sorted(left)} are no weights or biases of the tail"
            )

    @property
    def entry(self) -> int:
        """Number of the tensor between prefix and tail."""
        return self.layers[0].input.index

    def features(self, inputs: NDArray[np.int8], *, delegates: bool = False) -> NDArray[np.int8]:
        """What the frozen prefix makes of samples (N, ...): int8 values of the entry tensor.

        The real interpreter computes it, once: every epoch on these features costs only the tail.
        """
        if self.entry in self._model.inputs:
            return inputs
        return Session(self._model.cut(self.entry), delegates=delegates).run(inputs)

    def centred(self, features: NDArray[np.int8]) -> NDArray[np.float32]:
        """Features as the first layer takes them: float32, without the zero point."""
        first = self.layers[0].input
        x = features.reshape(len(features), *first.shape[1:]).astype(np.float32)
        x -= first.zero_point
        return x

    def forward(self, features: NDArray[np.int8]) -> NDArray[np.float32]:
        """Logits float32 (N, C) in real units for a batch of features."""
        x = self.centred(features)
        for layer in self.layers[:-1]:
            x = layer.forward(x)
        return self.logits_layer.logits(x)

    def backward(self, errors: NDArray[np.float32]) -> None:
        """Leave in each layer the gradients for errors (N, C) of the logits."""
        below: NDArray[np.float32] | None = errors
        for layer in reversed(self.layers):
            if below is not None:
                below = layer.backward(below, to_input=layer is not self.layers[0])

    def update(self, rate: float) -> None:
        """One SGD step; `rate` is the learning rate over the batch size."""
        for layer in self.layers:
            if isinstance(layer, WeightedLayer):
                layer.update(rate)

    def trained(self) -> dict[int, NDArray[np.int8] | NDArray[np.int32]]:
        """Tensor number -> its values now, in the tensor's dtype and shape."""
        values: dict[int, NDArray[np.int8] | NDArray[np.int32]] = {}
        for layer in self.layers:
            if isinstance(layer, WeightedLayer):
                values.update(layer.trained())
        return {
            index: array.reshape(self._model.tensors[index].shape)
            for index, array in values.items()
        }

    def multiply_adds(self) -> int:
        """Multiply-adds of one sample's forward pass through the tail."""
        return sum(
            prod(layer.output.shape[1:]) * layer.weight.grid.size // layer.output.shape[-1]
            for layer in self.layers
            if isinstance(layer, WeightedLayer)
        )
