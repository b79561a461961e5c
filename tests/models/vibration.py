# SPDX-License-Identifier: Apache-2.0
"""Vibration of rotating machines, made up: windows of an accelerometer's signal, sound and faulty.

A sound machine vibrates with its speed and two harmonics of it, each machine in its own way. The
windows begin anywhere in a turn, speed and load wander a little, and there is noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 64
# Samples are multiples of this, as of a converter of 8 bits over +-2 g: the same on every machine,
# though the sine's last bits are not.
STEP_G = 1 / 64


@dataclass(frozen=True)
class Machine:
    """Speed in turns a sample; amplitudes in g and phases in turns of the harmonics 1, 2 and 3."""

    speed: float
    amplitudes: tuple[float, float, float]
    phases: tuple[float, float, float]


MACHINES = (
    Machine(1 / 19, (0.7, 0.4, 0.25), (0.0, 0.15, 0.4)),
    Machine(1 / 23, (0.5, 0.6, 0.2), (0.0, 0.4, 0.1)),
    Machine(1 / 16, (0.8, 0.2, 0.4), (0.0, 0.7, 0.6)),
)
# bearing: a burst at each roll over a damaged spot. imbalance: more of the first harmonic.
# looseness: half the speed appears. noise: as of a dry gear. slow: below its speed.
FAULTS = ("bearing", "imbalance", "looseness", "noise", "slow")


def windows(machine: int, count: int, seed: int, fault: str | None = None) -> NDArray[np.float32]:
    """Return `count` windows of `MACHINES[machine]` in g, float32 (count, 64), within +-2."""
    if fault is not None and fault not in FAULTS:
        raise ValueError(f"there is no fault {fault}")
    rng = np.random.Generator(np.random.PCG64(seed))
    kind = MACHINES[machine]

    def around(middle: float, spread: float) -> NDArray[np.float64]:
        return middle + spread * (2 * rng.random((count, 1)) - 1)

    time = np.arange(WINDOW)
    speed = kind.speed * around(0.85 if fault == "slow" else 1, 0.03)
    turns = around(0.5, 0.5) + speed * time
    load = around(1, 0.15)
    x = np.zeros((count, WINDOW))
    for order, (amplitude, phase) in enumerate(zip(kind.amplitudes, kind.phases, strict=True), 1):
        more = 1.6 if fault == "imbalance" and order == 1 else 1
        x += more * amplitude * load * _sine(order * turns + phase)
    if fault == "looseness":
        x += 0.4 * load * _sine(turns / 2 + around(0.5, 0.5))
    if fault == "bearing":
        since = (3.6 * turns + around(0.5, 0.5)) % 1  # turns of the damaged spot since it was hit
        x += 0.7 * load * (1 - since) ** 4 * _sine(8 * since)
    noise = rng.random((count, WINDOW)) + rng.random((count, WINDOW)) - 1
    x += (0.7 if fault == "noise" else 0.12) * noise
    return (np.rint(x / STEP_G).clip(-127, 127) * STEP_G).astype(np.float32)


def _sine(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sin(2 * np.pi * turns)
