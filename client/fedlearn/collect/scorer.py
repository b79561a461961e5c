# SPDX-License-Identifier: Apache-2.0
"""The scorer: how well the task's autoencoder gives back each window that comes.

`python -m fedlearn.collect.scorer MODELS RING QUANTILE GRID` reads windows, raw, on its standard
input and answers each with a line of JSON. It uses the newest model that the agent has, and takes
another one up within seconds. The threshold is a quantile of the scores of the ring's own windows,
most of which are normal; they were trained on, too, so it is a little low.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from fedlearn.trainer.lean import import_lean

if __name__ == "__main__":
    import_lean()

import numpy as np
from numpy.typing import NDArray

from fedlearn.anomaly import anomaly_threshold, require_autoencoder
from fedlearn.collect.grid import Grid
from fedlearn.collect.training_set import inputs_of, normal_windows
from fedlearn.errors import FedlearnError
from fedlearn.evaluation import squared_errors
from fedlearn.model import Model
from fedlearn.runtime import Session

# How often it looks for a newer model, and how often the threshold is told anew.
LOOK_S = 5.0
THRESHOLD_S = 600.0
# The newest windows of the ring tell it.
MOST = 2000


class Judge:
    """A model, its interpreter, and the threshold of its scores on the ring."""

    def __init__(self, path: Path, grid: Grid, ring: Path, quantile: float) -> None:
        self.model = Model.parse(path.read_bytes())
        require_autoencoder(self.model, path.name)
        self._grid, self._ring, self._quantile = grid, ring, quantile
        self._session = Session(self.model.cut([self.model.exit]))
        self._told_s = time.monotonic()
        self.threshold = self._threshold()

    def scores(self, windows: NDArray[np.int8]) -> NDArray[np.float64]:
        """Scores (N,) of windows int8 (N, window, channels)."""
        inputs = inputs_of(windows, self._grid, self.model)
        output = self.model.tensors[self.model.exit]
        raw = self._session.run(inputs).reshape(len(inputs), -1).astype(np.float64)
        return squared_errors(self.model, (raw - output.zero_point) * output.scale, inputs)

    def refresh(self) -> None:
        """Tell the threshold anew when it is old."""
        if time.monotonic() - self._told_s > THRESHOLD_S:
            self._told_s = time.monotonic()
            self.threshold = self._threshold()

    def _threshold(self) -> float | None:
        try:
            windows = normal_windows(self._ring, self._grid, MOST)
            return anomaly_threshold(self.scores(windows), self._quantile)
        except (FedlearnError, OSError):  # too few as yet
            return None


def newest(models: Path) -> Path | None:
    """The model that the agent downloaded last."""
    found = []
    for path in models.glob("*.tflite"):
        try:
            found.append((path.stat().st_mtime_ns, path))
        except FileNotFoundError:  # replaced just now
            continue
    return max(found)[1] if found else None


def main(models: Path, ring: Path, quantile: float, grid: Grid) -> int:
    """Serve until the input ends; without a usable model, until it is clear that there is none."""
    path, judge, looked_s = None, None, -LOOK_S
    shape = (1, grid.window, len(grid.channels))
    while data := sys.stdin.buffer.read(grid.window_bytes):
        if len(data) < grid.window_bytes:
            break
        if time.monotonic() - looked_s >= LOOK_S:
            looked_s = time.monotonic()
            latest = newest(models)
            if latest is not None and latest != path:
                judge = Judge(latest, grid, ring, quantile)
                path = latest
        if judge is None:
            sys.stderr.write("there is no model to score with yet\n")
            return 1
        judge.refresh()
        (score,) = judge.scores(np.frombuffer(data, np.int8).reshape(shape))
        answer = {
            "score": float(score),
            "threshold": judge.threshold,
            "model": judge.model.digest.hex(),
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    try:
        code = main(
            Path(sys.argv[1]),
            Path(sys.argv[2]),
            float(sys.argv[3]),
            Grid.from_json(sys.argv[4].encode()),
        )
    except (FedlearnError, OSError) as error:
        sys.stderr.write(f"scores: {error}\n")
        code = 1
    sys.exit(code)
