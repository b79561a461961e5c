# SPDX-License-Identifier: Apache-2.0
"""Models of kinds that people deploy, as TensorFlow's converter writes them, and their data.

`README.md` in this folder tells what each is for; `build.py` makes them.
"""

from __future__ import annotations

from pathlib import Path

from fedlearn_demo.digits import load_test, load_train

_HERE = Path(__file__).parent

# On the digits, `load_train` and `load_test`.
MOBILENET_PATH = _HERE / "mobilenet.tflite"
UNTRAINED_PATH = _HERE / "untrained.tflite"
FLOAT_EDGES_PATH = _HERE / "float_edges.tflite"

__all__ = [
    "FLOAT_EDGES_PATH",
    "MOBILENET_PATH",
    "UNTRAINED_PATH",
    "load_test",
    "load_train",
]
