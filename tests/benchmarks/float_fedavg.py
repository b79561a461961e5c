# SPDX-License-Identifier: Apache-2.0
"""Federated averaging in float32 with PyTorch: what int8 training is measured against.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
algorithm 1, with every client in every round. It shares no code with the project's trainer; it
starts from the dequantised weights of the same `.tflite` and works on the same shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from tests.benchmarks.setting import Setting

Weights = Sequence[NDArray[np.float32]]
Shard = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class Net(nn.Module):
    """The digits net. Convolutions pad as TensorFlow's SAME does for stride 2: right and bottom."""

    def __init__(self, weights: Weights) -> None:
        """Start from kernels (out, height, width, in) and biases, in the order of the layers."""
        super().__init__()
        self.values = nn.ParameterList()
        for value in weights:
            kernel = value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
            self.values.append(nn.Parameter(torch.from_numpy(np.array(kernel, np.float32))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 10) of images (N, 1, 28, 28) in 0..1."""
        w1, b1, w2, b2, w3, b3, w4, b4 = self.values
        x = F.relu(F.conv2d(F.pad(x, (0, 1, 0, 1)), w1, b1, stride=2))
        x = F.relu(F.conv2d(F.pad(x, (0, 1, 0, 1)), w2, b2, stride=2))
        x = F.relu(F.linear(x.permute(0, 2, 3, 1).flatten(1), w3, b3))
        return F.linear(x, w4, b4)


def _tensors(shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = shard
    images = torch.from_numpy(x.astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(y.astype(np.int64))


def _train(net: Net, shard: tuple[torch.Tensor, torch.Tensor], setting: Setting, seed: int) -> None:
    x, y = shard
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(net.parameters(), lr=setting.learning_rate)
    for _ in range(setting.epochs):
        for batch in torch.randperm(len(y), generator=generator).split(setting.batch_size):
            optimiser.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()


def run(
    weights: Weights, shards: Sequence[Shard], test: Shard, setting: Setting
) -> Iterator[float]:
    """Yield the test accuracy (0..1) of the averaged model after each round."""
    torch.set_num_threads(1)
    net = Net(weights)
    data = [_tensors(shard) for shard in shards]
    x_test, y_test = _tensors(test)
    samples = sum(len(y) for _, y in data)
    base = [value.detach().clone() for value in net.values]
    for number in range(setting.rounds):
        total = [torch.zeros_like(value) for value in base]
        for client, shard in enumerate(data):
            with torch.no_grad():
                for value, start in zip(net.values, base, strict=True):
                    value.copy_(start)
            _train(net, shard, setting, hash((setting.seed, number, client)))
            for acc, value in zip(total, net.values, strict=True):
                acc += value.detach() * (len(shard[1]) / samples)
        base = total
        with torch.no_grad():
            for value, start in zip(net.values, base, strict=True):
                value.copy_(start)
            yield float((net(x_test).argmax(1) == y_test).float().mean())
