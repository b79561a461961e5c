# SPDX-License-Identifier: Apache-2.0
"""Operators that the trainer runs itself: a graph, and the values that go through it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError, UnsupportedOperatorError
from fedlearn.model import Model, Operator
from fedlearn.trainer.layer import Array, Layer
from fedlearn.trainer.operators import LAYERS

# Int8 values of the tensors that a section takes from before it, (N, ...) each.
Features = tuple[NDArray[np.int8], ...]


def take(features: Features, rows: NDArray[np.int64]) -> Features:
    """The features of the samples with these numbers."""
    return tuple(each[rows] for each in features)


def leading(model: Model, tensors: Collection[int]) -> list[Operator]:
    """The operators behind the model's int8 input that these tensors depend on, in order."""
    needed = set(tensors)
    found = []
    for operator in reversed(model.operators):
        # A file with a float edge makes its int8 input itself; samples come in behind that.
        if needed.intersection(operator.outputs) and operator.index != model.edges.quantize:
            found.append(operator)
            needed.update(operator.inputs)
    return found[::-1]


class Section:
    """Some of a model's operators in execution order, each as a layer.

    `entries` are the tensors that operators before it make, or the model's input.
    """

    def __init__(self, model: Model, operators: Sequence[Operator]) -> None:
        """Build the layers.

        Raises UnsupportedOperatorError for an operator that the trainer does not know.
        """
        self._model = model
        try:
            self.layers = [self._layer(operator) for operator in operators]
        except (IndexError, ValueError, OverflowError) as error:
            # Shapes or options that no converter writes.
            raise ModelError(f"the model is damaged: {error}") from error
        self.made = {layer.output.index for layer in self.layers}
        self.entries, self._constants = self._sources()
        self._last_use = {
            tensor.index: at for at, layer in enumerate(self.layers) for tensor in layer.inputs
        }

    def _layer(self, operator: Operator) -> Layer:
        kind = LAYERS.get(operator.name)
        if kind is None:
            raise UnsupportedOperatorError(
                f"operator {operator.index} ({operator.name}) cannot be trained",
                hint=f"train a tail behind it, that is, after operator {operator.index}",
            )
        return kind(self._model, operator)

    def _sources(self) -> tuple[tuple[int, ...], dict[int, Array]]:
        """Tensors that come from before, and constants in the place of activations."""
        entries: list[int] = []
        constants: dict[int, Array] = {}
        for layer in self.layers:
            for tensor in layer.inputs:
                if tensor.index in self.made or tensor.index in entries:
                    continue
                if tensor.is_constant:
                    values = self._model.array(tensor.index).astype(np.float32)
                    constants[tensor.index] = values - np.float32(tensor.zero_point)
                else:
                    entries.append(tensor.index)
        return tuple(entries), constants

    def pin(self) -> None:
        """Round as all devices do, whatever their runtimes do."""
        for layer in self.layers:
            layer.pin()

    def centred(self, features: Features) -> dict[int, Array]:
        """Features and constants as layers take them: float32, without the zero points."""
        values = dict(self._constants)
        for number, raw in zip(self.entries, features, strict=True):
            tensor = self._model.tensors[number]
            x = raw.reshape(len(raw), *tensor.shape[1:])
            values[number] = np.subtract(x, np.float32(tensor.zero_point), dtype=np.float32)
        return values

    def inputs_of(self, at: int, values: dict[int, Array]) -> tuple[Array, ...]:
        """What layer number `at` takes of `values`; drops what no later layer takes."""
        inputs = self.layers[at].inputs
        x = tuple(values[tensor.index] for tensor in inputs)
        for tensor in inputs:
            if self._last_use[tensor.index] == at:
                values.pop(tensor.index, None)
        return x
