# SPDX-License-Identifier: Apache-2.0
"""PyTorch, float32, eager, as its tutorials have it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf

from fedlearn.model import Model
from tests.benchmarks.case import BATCH, LEARNING_RATE, SEED, Case, Meter
from tests.benchmarks.torch_net import TorchNet

# Steps that decide which memory layout is the faster one, before the clock runs.
_TRIAL_STEPS = 30
_LAYOUTS = {"channels_last": torch.channels_last, "channels_first": torch.contiguous_format}


def run(case: Case, data: Path, epochs: int) -> dict[str, object]:
    """Train once, in the layout that does best on this machine."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = Model.parse(case.model.read_bytes())
    with np.load(data) as arrays:
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"].astype(np.int64))
    speeds = {name: _trial(case, model, name, x, y) for name in _LAYOUTS}
    layout = min(speeds, key=lambda name: speeds[name])
    meter = Meter(epochs)
    _train(TorchNet(model, case.layers, _LAYOUTS[layout]), x, y, epochs, meter)
    return meter.result({"layout": layout})


def _trial(case: Case, model: Model, layout: str, x: torch.Tensor, y: torch.Tensor) -> float:
    net = TorchNet(model, case.layers, _LAYOUTS[layout])
    few = slice(_TRIAL_STEPS * BATCH)
    _train(net, x[few], y[few], 1, Meter(1, _TRIAL_STEPS * BATCH))
    start = time.process_time()
    _train(net, x[few], y[few], 1, Meter(1, _TRIAL_STEPS * BATCH))
    return time.process_time() - start


def _train(net: TorchNet, x: torch.Tensor, y: torch.Tensor, epochs: int, meter: Meter) -> None:
    features = net.features(x)
    optimiser = torch.optim.SGD(net.parameters, lr=LEARNING_RATE)
    for epoch in range(epochs):
        total = 0.0
        for step, rows in enumerate(torch.randperm(len(y)).split(BATCH), 1):
            optimiser.zero_grad()
            loss = nnf.cross_entropy(net.logits(features[rows]), y[rows])
            loss.backward()
            optimiser.step()
            total += loss.item()
            meter(epoch, 0.0, total / step)
