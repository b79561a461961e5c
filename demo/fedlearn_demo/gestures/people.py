# SPDX-License-Identifier: Apache-2.0
"""What of the recordings goes where: streams to learn from, windows to be judged by.

Windows are cut by the client's own code, as on a device. None reaches from one recording into the
next, and none has a sample of both sides of a split, which is always by time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedlearn.collect.grid import Grid
from fedlearn.collect.sample import Counts, Sample
from fedlearn.collect.windows import Windower
from fedlearn_demo.gestures.float_net import Shard
from fedlearn_demo.gestures.watch import (
    CHANNELS,
    CLASSES,
    SCALE,
    STEP,
    STRIDE,
    WINDOW,
    Recording,
)

GRID = Grid(CHANNELS, WINDOW, (0.0,) * len(CHANNELS), SCALE, STEP, 0)
Floats = NDArray[np.float64]
# A line that is no sample: what a sender may say between two exercises, and where windows end.
PAUSE = "pause"


class Windows:
    """Windows `x` int8 (N, window, channels) on the task's grid, and their classes `y` (N,)."""

    def __init__(self, x: NDArray[np.int8], y: NDArray[np.int64]) -> None:
        self.x, self.y = x, y

    @classmethod
    def cut(cls, parts: Iterable[tuple[Floats, int]], stride: int = STRIDE) -> Windows:
        """Cut each of these (samples, class) for itself."""
        data, labels = [], []
        for samples, label in parts:
            windower = Windower(GRID, stride, Counts())
            for number, values in enumerate(samples.tolist()):
                for window in windower.push(Sample(tuple(values), label), number):
                    data.append(window.data)
                    labels.append(label)
        x = np.frombuffer(b"".join(data), np.int8)
        return cls(x.reshape(-1, WINDOW, len(CHANNELS)), np.array(labels, np.int64))

    @classmethod
    def join(cls, several: Sequence[Windows]) -> Windows:
        """All of these."""
        return cls(
            np.concatenate([each.x for each in several]),
            np.concatenate([each.y for each in several]),
        )

    def __len__(self) -> int:
        return len(self.y)

    def real(self) -> Shard:
        """The same windows for the float32 net: on the same grid, in the model's units."""
        return Shard(self.x.astype(np.float32) * np.float32(STEP), self.y)


def of(recordings: Collection[Recording], person: int) -> list[Recording]:
    """The recordings of a person."""
    return [each for each in recordings if each.person == person]


def stream(recordings: Collection[Recording]) -> str:
    """What the sensor sends of the part to learn from: a line a sample, its class at the end."""
    lines = []
    for each in recordings:
        name = CLASSES[each.label]
        lines += [
            ",".join([*(f"{value:.4f}" for value in row), name]) for row in each.trained.tolist()
        ]
        lines.append(PAUSE)
    return "\n".join(lines) + "\n"


def trained(recordings: Collection[Recording]) -> Windows:
    """The windows of `stream`."""
    return Windows.cut((each.trained, each.label) for each in recordings)


def judged(recordings: Collection[Recording]) -> Windows:
    """The windows of the part to be judged by."""
    return Windows.cut((each.judged, each.label) for each in recordings)


def whole(recordings: Collection[Recording]) -> Windows:
    """All windows: of somebody whom no device has seen."""
    return Windows.cut((each.samples, each.label) for each in recordings)


def few(recordings: Collection[Recording], count: int) -> tuple[Windows, Windows]:
    """The first `count` windows of each exercise, of both arms, and those of the time after.

    This is all that a new person labels.
    """
    arms = sorted({each.arm for each in recordings})
    learnt, rest = [], []
    for each in recordings:
        # 5 of two arms: 3 and 2.
        share = (count + len(arms) - 1 - arms.index(each.arm)) // len(arms)
        cut = WINDOW + (share - 1) * STRIDE
        learnt.append((each.samples[:cut], each.label))
        rest.append((each.samples[cut:], each.label))
    return Windows.cut(learnt), Windows.cut(rest)
