# SPDX-License-Identifier: Apache-2.0
"""The float32 network of an int8 `.tflite` in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf

from fedlearn.model import Model
from fedlearn.model.schema import Activation
from tests.benchmarks.float_net import Operation, pads, read, real

# Samples that go through the prefix at once.
_PREFIX_BATCH = 100


class TorchNet:
    """The last `layers` layers with weights are trained; what is before them is computed once."""

    def __init__(
        self, model: Model, layers: int, layout: torch.memory_format = torch.channels_last
    ) -> None:
        self._net = read(model, layers)
        self._model, self._layout = model, layout
        self.weights: dict[int, torch.Tensor] = {}
        for operations, trained in ((self._net.prefix, False), (self._net.tail, True)):
            for each in operations:
                if each.weight >= 0:
                    self._add(each, trained)
        self.parameters = [value for value in self.weights.values() if value.requires_grad]

    def _add(self, operation: Operation, trained: bool) -> None:
        weight = torch.from_numpy(real(self._model, operation.weight))
        if operation.name == "CONV_2D":
            weight = weight.permute(0, 3, 1, 2)
        elif operation.name == "DEPTHWISE_CONV_2D":
            weight = weight.permute(3, 0, 1, 2)
        if weight.ndim == 4:
            weight = weight.contiguous(memory_format=self._layout)
        bias = torch.from_numpy(real(self._model, operation.bias))
        self.weights[operation.weight] = weight.requires_grad_(trained)
        self.weights[operation.bias] = bias.requires_grad_(trained)

    def as_in_file(self, number: int) -> torch.Tensor:
        """A weight or a bias in the shape of the `.tflite`."""
        value = self.weights[number].detach()
        if value.ndim != 4:
            return value
        depthwise = any(
            each.weight == number and each.name == "DEPTHWISE_CONV_2D" for each in self._net.tail
        )
        return value.permute(1, 2, 3, 0) if depthwise else value.permute(0, 2, 3, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the tail takes, for images uint8 (N, H, W, C).

        Without a prefix the images themselves, a byte a pixel: `logits` makes floats of a batch.
        """
        images = x.permute(0, 3, 1, 2)
        if not self._net.prefix:
            return images.contiguous(memory_format=self._layout)
        with torch.no_grad():
            parts = [
                self._run(self._net.prefix, {self._model.entry: _scaled(part)}, self._net.entry)
                for part in images.split(_PREFIX_BATCH)
            ]
            made = torch.cat(parts)
        return made.contiguous(memory_format=self._layout) if made.ndim == 4 else made

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of a batch of features."""
        values = {self._net.entry: features if self._net.prefix else _scaled(features)}
        return self._run(self._net.tail, values, self._net.tail[-1].output)

    def _run(
        self, operations: Sequence[Operation], values: dict[int, torch.Tensor], result: int
    ) -> torch.Tensor:
        for each in operations:
            values[each.output] = self._apply(each, [values[number] for number in each.inputs])
        return values[result]

    def _apply(self, operation: Operation, inputs: list[torch.Tensor]) -> torch.Tensor:
        x = inputs[0]
        if operation.name == "ADD":
            return x + inputs[1]
        if operation.name == "MEAN":
            return x.mean((2, 3))
        if operation.name == "RESHAPE":  # the order is that of NHWC
            return x.permute(0, 2, 3, 1).flatten(1)
        weight, bias = self.weights[operation.weight], self.weights[operation.bias]
        if operation.name == "FULLY_CONNECTED":
            return _activated(nnf.linear(x, weight, bias), operation.activation)
        before = behind = (0, 0)
        if operation.same:
            axes = [
                pads(int(x.shape[axis]), int(weight.shape[axis]), operation.stride)
                for axis in (2, 3)
            ]
            before, behind = ((axes[0][side], axes[1][side]) for side in (0, 1))
        if before != behind:  # what is left of an even size and a stride of 2
            x = nnf.pad(x, (before[1], behind[1], before[0], behind[0]))
            before = (0, 0)
        groups = x.shape[1] if operation.name == "DEPTHWISE_CONV_2D" else 1
        y = nnf.conv2d(x, weight, bias, operation.stride, before, groups=groups)
        return _activated(y, operation.activation)


def _scaled(images: torch.Tensor) -> torch.Tensor:
    return images.to(torch.float32).div_(255)


def _activated(y: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation is Activation.RELU:
        return nnf.relu(y)
    return nnf.relu6(y) if activation is Activation.RELU6 else y
