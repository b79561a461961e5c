# SPDX-License-Identifier: Apache-2.0
"""TFLite's own on-device training: SGD steps that are signatures of a float32 `.tflite`.

The weights are resource variables of the interpreter. Inputs of a step are float32; the frozen part
is run once, as the int8 model that is deployed.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.dataset import Dataset
from fedlearn.model import Model
from fedlearn.runtime import Session, is_litert
from tests.benchmarks.case import BATCH, LEARNING_RATE, SEED, Case, Meter
from tests.benchmarks.float_net import read


def open_steps(path: Path) -> Any:
    """An interpreter with the runtime's default kernels and delegates, on one thread."""
    package = "ai_edge_litert" if is_litert() else "tflite_runtime"
    interpreter = import_module(f"{package}.interpreter")
    return interpreter.Interpreter(str(path), num_threads=1)


def run(case: Case, data: Path, epochs: int) -> dict[str, object]:
    """Train once."""
    if not case.steps.exists():
        return {"absent": f"there is no {case.steps.name}"}
    model = Model.parse(case.model.read_bytes())
    features = _features(case, model, data)
    with np.load(data) as arrays:
        y = arrays["y"].astype(np.int32)
    interpreter = open_steps(case.steps)
    step = interpreter.get_signature_runner(f"train_{case.name}")
    rate = np.float32(LEARNING_RATE)
    rng = np.random.default_rng(SEED)
    meter = Meter(epochs)
    for epoch in range(epochs):
        total = 0.0
        for number, rows in enumerate(np.split(rng.permutation(len(y)), len(y) // BATCH), 1):
            x = features[rows]
            if x.dtype == np.uint8:
                x = x.astype(np.float32)
                x *= np.float32(1 / 255)
            total += float(step(x=x, y=y[rows], rate=rate)["loss"])
            meter(epoch, 0.0, total / number)
    return meter.result({"weights": "resource variables"})


def _features(case: Case, model: Model, data: Path) -> NDArray[np.float32] | NDArray[np.uint8]:
    """What the step takes: outputs of the frozen part, or the images, a byte a pixel."""
    net = read(model, case.layers)
    if not net.prefix:
        with np.load(data) as arrays:
            images: NDArray[np.uint8] = arrays["x"]
        return images
    entry = model.tensors[net.entry]
    raw = Session(model.cut([net.entry])).run(Dataset.load(data, model).inputs)
    features = raw.astype(np.float32)
    features -= np.float32(entry.zero_point)
    features *= np.float32(entry.scale)
    return features
