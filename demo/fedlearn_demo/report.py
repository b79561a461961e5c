# SPDX-License-Identifier: Apache-2.0
"""The figures of a run, as `report.json`. Bytes are those of HTTP bodies; MB is 10^6 bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Report:
    """What a run reached and what it cost."""

    devices: int
    rounds: int
    tail: str
    epochs: int
    batch_size: int
    learning_rate: float
    split: str
    seed: int
    samples_by_device: list[int]
    runtime: str  # the TFLite runtime
    start_accuracy: float
    accuracy_by_round: list[float]  # by the aggregator, with the real interpreter
    final_accuracy: float  # of the exported file, with the real interpreter
    model_sha256: str  # of that file
    bytes_up_median: float  # an update
    bytes_up_max: int
    bytes_down_median: float  # a model, as a difference when that is smaller
    bytes_down_first: float  # the first model, whole
    round_s_median: float
    round_overhead_s_median: float  # a round beyond its slowest local training
    first_training_s: float  # from the agent's start, median of the devices
    first_training_s_max: float
    device_peak_rss_mb: float  # agent and trainer, the kernel's peaks (VmHWM) added up; largest
    device_sampled_peak_rss_mb: float  # the same tree as sampled, at one moment
    device_idle_rss_mb: float  # the agent alone, when the trainer has ended; largest
    device_idle_cpu_percent: float  # of one core, mean of the devices
    wall_s: float  # from the first process to the last

    def save(self, path: Path) -> None:
        """Write the report."""
        path.write_text(self.to_json() + "\n")

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=2)
