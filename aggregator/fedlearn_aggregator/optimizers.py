# SPDX-License-Identifier: Apache-2.0
"""Server optimisers: what a round's mean delta does to the master weights.

The mean delta takes the place of a negative gradient (Reddi et al. 2021, "Adaptive Federated
Optimization", arXiv 2003.00295, algorithm 2; FedAvgM: Hsu et al. 2019, arXiv 1909.06335):

    FedAvg    M += eta D
    FedAvgM   v = beta v + D;  M += eta v
    FedAdam   m = b1 m + (1 - b1) D;  v = b2 v + (1 - b2) D^2;  M += eta m / (sqrt(v) + tau)

Master weights M are float64 in steps of the tensor's grid (scale 1 is one int8 step of a weight or
one int32 step of a bias). They keep the fraction that the broadcast model rounds away, so small
deltas add up over rounds instead of vanishing. FedAvg and FedAvgM are linear and work on the grid
directly. FedAdam divides by the delta's own size, so it works in real units (grid steps x scale),
in which one learning rate fits weights and biases alike, as in the paper.

Only + - * / and sqrt on single float64 elements are used, which IEEE 754 rounds correctly: the
same bits on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from fedlearn.errors import ConfigError
from fedlearn_aggregator.aggregation import Arrays

# Anti-windup. Devices clip weights to +-127, so at the edge their deltas can only point inwards.
# Momentum or a large learning rate could still carry M far outside, and it would then take many
# rounds of honest deltas until the broadcast weight moves at all. Below half a step outside, M
# rounds to the edge, and a delta of one step shows in the very next model.
WEIGHT_EDGE = 127.49
# A bias has all of int32; the edge itself is exact in float64.
BIAS_EDGE = float(2**31 - 1)


class OptimizerName(StrEnum):
    """The server optimisers by name."""

    FEDAVG = "fedavg"
    FEDAVGM = "fedavgm"
    FEDADAM = "fedadam"


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Which optimiser, and its parameters. `tau` and FedAdam's rate are in real units."""

    name: OptimizerName = OptimizerName.FEDAVG
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    @property
    def in_real_units(self) -> bool:
        """Whether `step` needs the scales of the grid."""
        return self.name is OptimizerName.FEDADAM

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError("server learning rate must be above 0")
        if not all(0 <= value < 1 for value in (self.momentum, self.beta1, self.beta2)):
            raise ConfigError("server momentum and betas must be from 0 to below 1")
        if not 0 < self.tau < math.inf:
            raise ConfigError("tau must be above 0")


@dataclass(frozen=True, slots=True)
class ServerState:
    """Master weights and the optimiser's moments by tensor index. Arrays are never changed."""

    master: Arrays
    first: Arrays = field(default_factory=dict)
    second: Arrays = field(default_factory=dict)


def step(
    settings: OptimizerSettings,
    state: ServerState,
    mean: Arrays,
    scales: Mapping[int, npt.NDArray[np.float64]],
    edges: Mapping[int, float],
) -> ServerState:
    """Apply one round's `mean` delta (grid steps).

    `scales` holds the real value of one grid step, broadcastable to the tensor's shape, and may be
    empty unless `in_real_units`; `edges` the largest magnitude of a master weight. Moments
    that are missing start as the papers say.
    """
    master: Arrays = {}
    first: Arrays = {}
    second: Arrays = {}
    for index, weights in state.master.items():
        delta = mean[index]
        match settings.name:
            case OptimizerName.FEDAVG:
                move = delta
            case OptimizerName.FEDAVGM:
                velocity = state.first.get(index, np.zeros_like(delta))
                first[index] = move = settings.momentum * velocity + delta
            case OptimizerName.FEDADAM:
                real = delta * scales[index]
                m = state.first.get(index, np.zeros_like(real))
                v = state.second.get(index, np.full_like(real, settings.tau * settings.tau))
                m = settings.beta1 * m + (1 - settings.beta1) * real
                v = settings.beta2 * v + (1 - settings.beta2) * (real * real)
                first[index], second[index] = m, v
                move = m / (np.sqrt(v) + settings.tau) / scales[index]
        edge = edges[index]
        master[index] = np.clip(weights + settings.learning_rate * move, -edge, edge)
    return ServerState(master, first, second)
