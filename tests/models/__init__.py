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

_HERE = Path(__file__).parent

# On the digits, `load_train` and `load_test`.
MOBILENET_PATH = _HERE / "mobilenet.tflite"
UNTRAINED_PATH = _HERE / "untrained.tflite"
FLOAT_EDGES_PATH = _HERE / "float_edges.tflite"
# On `load_keywords_train` and `load_keywords_test`.
KEYWORDS_PATH = _HERE / "keywords.tflite"


def load_keywords_train() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return spectrograms, uint8 (2000, 49, 10, 1), and their keywords 0 to 7, uint8 (2000,)."""
    return spectrograms(250, seed=1)


def load_keywords_test() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return spectrograms, uint8 (800, 49, 10, 1), and their keywords 0 to 7, uint8 (800,)."""
    return spectrograms(100, seed=2)


__all__ = [
    "FLOAT_EDGES_PATH",
    "MOBILENET_PATH",
    "UNTRAINED_PATH",
    "load_test",
    "load_train",
]
