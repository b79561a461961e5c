# SPDX-License-Identifier: Apache-2.0
"""Spoken keywords, made up: spectrograms of 49 frames and 10 bands, as of one second of speech.

A keyword is a tone whose pitch follows the keyword's own curve, said faster or slower, earlier or
later, higher or lower, louder or softer, over background noise and a bystander's short tone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FRAMES = 49
BANDS = 10
# Pitch by time, both from 0 to 1: points at equal distances, straight lines between them.
CURVES = (
    (0.0, 1.0),
    (1.0, 0.0),
    (0.0, 1.0, 0.0),
    (1.0, 0.0, 1.0),
    (0.0, 0.0, 1.0, 1.0),
    (1.0, 1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0, 1.0),
    (1.0, 0.0, 1.0, 0.0),
)
CLASSES = len(CURVES)


def spectrograms(per_class: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return `per_class` spectrograms of each keyword, shuffled, and their numbers.

    Shapes uint8 (N, 49, 10, 1) and uint8 (N,); the same on every machine for the same arguments:
    only arithmetic comes before the rounding.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = rng.permutation(np.repeat(np.arange(CLASSES, dtype=np.uint8), per_class))
    x = np.stack([_spectrogram(CURVES[label], rng) for label in labels])
    return np.rint(255 * x.clip(0, 1)).astype(np.uint8)[..., np.newaxis], labels


def _spectrogram(curve: tuple[float, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    duration = 15 + 20 * rng.random()
    tone = _tone(
        curve,
        start=(FRAMES - duration) * rng.random(),
        duration=duration,
        lowest=3 * rng.random(),
        width=0.8 + 0.8 * rng.random(),
    )
    bystander = _tone(
        (rng.random(),) * 2,
        start=FRAMES * rng.random(),
        duration=3 + 9 * rng.random(),
        lowest=3 * rng.random(),
        width=1.0,
    )
    noise = rng.random((FRAMES, BANDS)) + rng.random((FRAMES, BANDS)) - 1
    loudness = 0.25 + 0.4 * rng.random()
    return 0.15 + loudness * tone + 0.4 * rng.random() * bystander + 0.45 * noise


def _tone(
    curve: tuple[float, ...], *, start: float, duration: float, lowest: float, width: float
) -> NDArray[np.float64]:
    """A parabolic bump across the bands, at each frame of the tone; 0..1."""
    time = (np.arange(FRAMES) - start) / duration
    pitch = lowest + 6 * np.interp(time, np.linspace(0, 1, len(curve)), curve)
    envelope = (8 * np.minimum(time, 1 - time)).clip(0, 1)
    distance = (np.arange(BANDS) - pitch[:, np.newaxis]) / (2 * width)
    return envelope[:, np.newaxis] * (1 - distance * distance).clip(0, None)
