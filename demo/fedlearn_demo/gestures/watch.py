# SPDX-License-Identifier: Apache-2.0
"""The smartwatch data set of the PyPI package seglearn: who did what, as streams of samples.

D. M. Burns et al. 2018, "Shoulder physiotherapy exercise recognition: machine learning the inertial
signals from a smartwatch", Physiological Measurement 39(7). 10 people, 7 exercises, both arms: 140
recordings of accelerometer (g) and gyroscope (rad/s) at 50 Hz.

seglearn needs SciPy and scikit-learn; its data file does not, and only that is read. It is a
pickle, so it is read only if it is the one that this module knows.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ConfigError, DatasetError

SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
HINT = "pip install --no-deps seglearn==1.2.5"

RATE_HZ = 50
CHANNELS = ("ax", "ay", "az", "wx", "wy", "wz")
CLASSES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
PEOPLE = tuple(range(1, 11))

# The task's windows, two seconds, and its grid: one unit of the model is half of gravity, or a
# quarter of a turn in a second, and int8 holds 6.4 of them each way. Round numbers of what an arm
# does, and nothing of what these people did.
WINDOW, STRIDE = 100, 50
SCALE = (0.5, 0.5, 0.5, 1.5, 1.5, 1.5)
STEP = 0.05
# The first part of each recording is to learn from, the rest to be judged by: no window has a
# sample of both.
TRAINED_SHARE = 0.75


@dataclass(frozen=True, eq=False)
class Recording:
    """One exercise of one person with one arm: `samples` float64 (N, 6), in g and rad/s."""

    person: int
    label: int
    arm: str
    samples: NDArray[np.float64]

    @property
    def trained(self) -> NDArray[np.float64]:
        """The samples to learn from."""
        return self.samples[: self._cut]

    @property
    def judged(self) -> NDArray[np.float64]:
        """The samples to be judged by."""
        return self.samples[self._cut :]

    @property
    def _cut(self) -> int:
        return round(TRAINED_SHARE * len(self.samples))


def find() -> Path:
    """The data file of the installed package. Raises ConfigError with what to install."""
    spec = importlib.util.find_spec("seglearn")
    path = Path(str(spec.origin)).parent / "data/watch_dataset.npy" if spec else None
    if path is None or not path.is_file():
        raise ConfigError("the smartwatch data are not installed", hint=HINT)
    return path


def load(path: Path) -> list[Recording]:
    """Read the file: all recordings, by person, exercise and arm."""
    body = path.read_bytes()
    if hashlib.sha256(body).hexdigest() != SHA256:
        raise DatasetError(f"{path} is not the file of seglearn 1.2.5", hint=HINT)
    values: Mapping[str, Any] = np.load(path, allow_pickle=True).item()
    columns = (values["X"], values["y"], values["subject"], values["side"])
    found = [
        # As a sensor prints them: four decimals.
        Recording(int(person), int(label), "right" if side else "left", np.round(x, 4))
        for x, label, person, side in zip(*columns, strict=True)
    ]
    return sorted(found, key=lambda each: (each.person, each.label, each.arm))
