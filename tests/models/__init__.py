# SPDX-License-Identifier: Apache-2.0
"""Models of kinds that people deploy, as TensorFlow's converter writes them, and their data.

`README.md` in this folder tells what each is for; `build.py` makes them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlearn_demo.digits import load_test, load_train
from tests.models.keywords import spectrograms
from tests.models.vibration import FAULTS, windows

_HERE = Path(__file__).parent

# On the digits, `load_train` and `load_test`.
MOBILENET_PATH = _HERE / "mobilenet.tflite"
UNTRAINED_PATH = _HERE / "untrained.tflite"
FLOAT_EDGES_PATH = _HERE / "float_edges.tflite"
# On the digits, labelled by `label_digits`.
MULTILABEL_PATH = _HERE / "multilabel.tflite"
# On `load_keywords_train` and `load_keywords_test`.
KEYWORDS_PATH = _HERE / "keywords.tflite"
# On `load_vibration_train`, `load_vibration_test` and `load_vibration_fault`.
AUTOENCODER_PATH = _HERE / "autoencoder.tflite"

# What `multilabel.tflite` says of a digit, and of which digits it is true.
LABELS = {
    "even": (0, 2, 4, 6, 8),
    "more than four": (5, 6, 7, 8, 9),
    "has a loop": (0, 6, 8, 9),
    "multiple of three": (0, 3, 6, 9),
}


def label_digits(digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return which of `LABELS` are true of each digit: 0 or 1, uint8 (N, 4)."""
    columns = [np.isin(digits, members) for members in LABELS.values()]
    return np.stack(columns, axis=1).astype(np.uint8)


def load_keywords_train() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return spectrograms, uint8 (2000, 49, 10, 1), and their keywords 0 to 7, uint8 (2000,)."""
    return spectrograms(250, seed=1)


def load_keywords_test() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return spectrograms, uint8 (800, 49, 10, 1), and their keywords 0 to 7, uint8 (800,)."""
    return spectrograms(100, seed=2)


def load_vibration_train(machine: int = 0) -> NDArray[np.float32]:
    """Return windows of a sound machine in g, float32 (2000, 64). The model knows machine 0."""
    return windows(machine, 2000, seed=1)


def load_vibration_test(machine: int = 0) -> NDArray[np.float32]:
    """Return other windows of a sound machine in g, float32 (500, 64)."""
    return windows(machine, 500, seed=2)


def load_vibration_fault(fault: str, machine: int = 0) -> NDArray[np.float32]:
    """Return windows of a machine with one of `FAULTS` in g, float32 (500, 64)."""
    return windows(machine, 500, seed=3 + FAULTS.index(fault), fault=fault)


__all__ = [
    "AUTOENCODER_PATH",
    "FAULTS",
    "FLOAT_EDGES_PATH",
    "KEYWORDS_PATH",
    "LABELS",
    "MOBILENET_PATH",
    "MULTILABEL_PATH",
    "UNTRAINED_PATH",
    "label_digits",
    "load_keywords_test",
    "load_keywords_train",
    "load_test",
    "load_train",
    "load_vibration_fault",
    "load_vibration_test",
    "load_vibration_train",
]
