# SPDX-License-Identifier: Apache-2.0
"""Recordings that nobody made: each exercise a rhythm of its own, each person a strength."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn_demo.gestures.watch import CHANNELS, CLASSES, PEOPLE, Recording


def recordings(length: int = 700) -> list[Recording]:
    rng = np.random.default_rng(7)
    made = []
    for person in PEOPLE:
        strength = rng.uniform(0.6, 1.4)
        for label in range(len(CLASSES)):
            for arm in ("left", "right"):
                time = np.arange(length)[:, np.newaxis] / 50
                phase = rng.uniform(0, 6) + np.arange(len(CHANNELS))
                wave = strength * np.sin((1 + label) * time + phase)
                noise = rng.normal(0, 0.2, (length, len(CHANNELS)))
                samples: NDArray[np.float64] = np.round(np.add(wave, noise), 4)
                made.append(Recording(person, label, arm, samples))
    return made
