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
import torch.nn.functional as nnf
from numpy.typing import NDArray

from tests.benchmarks.setting import Setting, round_seed

Weights = Sequence[NDArray[np.float32]]
Shard = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def run(
    weights: Weights, shards: Sequence[Shard], test: Shard, setting: Setting
) -> Iterator[float]:
    """Yield the test accuracy (0..1) of the averaged model after each round.

    `weights` are kernels (out, height, width, in) or (out, in) and biases, layer by layer.
    """
    torch.set_num_threads(1)
    mean = [torch.from_numpy(w.transpose(0, 3, 1, 2) if w.ndim == 4 else w) for w in weights]
    data = [_tensors(shard) for shard in shards]
    x_test, y_test = _tensors(test)
    samples = sum(len(y) for _, y in data)
    for number in range(setting.rounds):
        total = [torch.zeros_like(value) for value in mean]
        for client, (x, y) in enumerate(data):
            local = _train(mean, x, y, setting, round_seed(setting, number, client))
            for summed, value in zip(total, local, strict=True):
                summed.add_(value, alpha=len(y) / samples)
        mean = total
        hits = int((_logits(mean, x_test).argmax(1) == y_test).sum())
        yield hits / len(y_test)


def _tensors(shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = shard
    images = torch.from_numpy(x.astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(y.astype(np.int64))


def _logits(values: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Logits (N, 10) of images (N, 1, 28, 28) in 0..1.

    SAME of TensorFlow pads an even side right and bottom when the stride is 2.
    """
    w1, b1, w2, b2, w3, b3, w4, b4 = values
    x = nnf.relu(nnf.conv2d(nnf.pad(x, (0, 1, 0, 1)), w1, b1, stride=2))
    x = nnf.relu(nnf.conv2d(nnf.pad(x, (0, 1, 0, 1)), w2, b2, stride=2))
    x = nnf.relu(nnf.linear(x.permute(0, 2, 3, 1).flatten(1), w3, b3))
    return nnf.linear(x, w4, b4)


def _train(
    start: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, setting: Setting, seed: int
) -> list[torch.Tensor]:
    values = [value.clone().requires_grad_() for value in start]
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(values, lr=setting.learning_rate)
    for _ in range(setting.epochs):
        for batch in torch.randperm(len(y), generator=generator).split(setting.batch_size):
            optimiser.zero_grad()
            nnf.cross_entropy(_logits(values, x[batch]), y[batch]).backward()
            optimiser.step()
    return [value.detach() for value in values]
