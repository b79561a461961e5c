# SPDX-License-Identifier: Apache-2.0
"""What every contender of the training benchmark is given, and how it is measured.

Imports nothing that the device's trainer process would not have in memory anyway.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BATCH = 32
SAMPLES = 4_000
LEARNING_RATE = 0.05
SEED = 1

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
# Plain SGD steps as `.tflite` signatures, made by `tests.benchmarks.tflite_training`.
DIGITS_STEPS = _HERE / "digits_training.tflite"
MOBILENET_STEPS = _HERE / "mobilenet_training.tflite"

# A user's machine has none of these set; they choose other kernels than the CPU would get.
KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "NPY_DISABLE_CPU_FEATURES",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
)
_THREAD_VARIABLES = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Case:
    """Train the last `layers` layers with weights of a model for some epochs.

    As many epochs as give every contender a second or so.
    """

    name: str
    what: str
    model: Path
    steps: Path
    layers: int
    epochs: int


_DIGITS = _ROOT / "demo" / "fedlearn_demo" / "digits" / "digits.tflite"
_MOBILENET = _ROOT / "tests" / "models" / "mobilenet.tflite"

CASES = {
    case.name: case
    for case in (
        Case("a", "digits, last layer", _DIGITS, DIGITS_STEPS, 1, 120),
        Case("b", "digits, both dense layers", _DIGITS, DIGITS_STEPS, 2, 40),
        Case("c", "digits, whole network", _DIGITS, DIGITS_STEPS, 4, 12),
        Case(
            "mobilenet",
            "MobileNetV2-style, from the last inverted residual block on",
            _MOBILENET,
            MOBILENET_STEPS,
            5,
            6,
        ),
    )
}


def settle_environment() -> None:
    """One thread, and the kernels that the CPU gets by itself; before NumPy is imported."""
    for name in KERNEL_VARIABLES:
        os.environ.pop(name, None)
    for name in _THREAD_VARIABLES:
        os.environ[name] = "1"


class Meter:
    """Called after each step, as the trainer calls its `progress`.

    The first step warms caches and allocators up and is outside of the clock. The clock is read at
    the first step and the last alone: on some machines reading it takes longer than a step.
    """

    def __init__(self, epochs: int, samples: int = SAMPLES) -> None:
        self._last = epochs * (samples // BATCH)
        self._steps = 0
        self._first_s = self._last_s = 0.0
        self._losses: dict[int, float] = {}

    def __call__(self, epoch: int, _done: float, loss: float) -> None:
        """`loss` is the mean of the epoch so far."""
        self._steps += 1
        if self._steps == 1:
            self._first_s = time.process_time()
        if self._steps == self._last:
            self._last_s = time.process_time()
        self._losses[epoch] = loss

    def result(self, settings: Mapping[str, object] | None = None) -> dict[str, object]:
        """What was measured; `settings` are the contender's own choices."""
        if self._steps != self._last:
            raise RuntimeError(f"{self._steps} steps of {self._last}")
        cpu_s = self._last_s - self._first_s
        samples = BATCH * (self._steps - 1)
        return {
            "samples_per_cpu_s": samples / cpu_s,
            "peak_rss_mb": peak_rss_mb(),
            "samples": samples,
            "cpu_s": cpu_s,
            "epoch_losses": [self._losses[epoch] for epoch in sorted(self._losses)],
            **(settings or {}),
        }


def peak_rss_mb() -> float:
    """The largest resident size that this process had, in 10^6 bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("this kernel does not tell the peak of a process's memory")
