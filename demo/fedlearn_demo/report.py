# SPDX-License-Identifier: Apache-2.0
"""The figures of a run, as `report.json`. Bytes are those of HTTP bodies; MB is 10^6 bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from fedlearn.dataset import Dataset
from fedlearn.errors import FedlearnError
from fedlearn.evaluation import evaluate
from fedlearn.model import Model
from fedlearn.runtime import runtime_name
from fedlearn_demo.digits import MODEL_PATH
from fedlearn_demo.fleet import Device
from fedlearn_demo.idle import Idle
from fedlearn_demo.rounds import Round
from fedlearn_demo.settings import Settings
from fedlearn_demo.workspace import Workspace

_MB = 1e6


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured beside the rounds themselves."""

    devices: Sequence[Device]
    idle: Idle
    first_training_s: Sequence[float]  # by device
    wall_s: float


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
    device_idle_rss_mb: float  # the agent alone, waiting for the next round; largest
    device_idle_cpu_percent: float  # of one core, while it holds a check-in; mean of the devices
    wall_s: float  # from the first process to the last

    def save(self, path: Path) -> None:
        """Write the report."""
        path.write_text(self.to_json() + "\n")

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=2)


def make_report(
    settings: Settings, workspace: Workspace, rounds: Sequence[Round], costs: Costs
) -> Report:
    """Check the exported model with the real interpreter and sum everything up."""
    final = workspace.final_model.read_bytes()
    digest = hashlib.sha256(final).hexdigest()
    if digest != rounds[-1].model:
        raise FedlearnError("the exported model is not that of the last round")
    test = Dataset.load(workspace.test_data, Model.parse(final))
    up = [size for each in rounds for size in each.bytes_up]
    down = [size for each in rounds for size in each.bytes_down]
    meters = [device.meter for device in costs.devices]
    return Report(
        devices=settings.devices,
        rounds=settings.rounds,
        tail=settings.tail,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        split=f"Dirichlet({settings.alpha:g}) by class",
        seed=settings.seed,
        samples_by_device=[device.samples for device in costs.devices],
        runtime=runtime_name(),
        start_accuracy=evaluate(MODEL_PATH.read_bytes(), test).known_accuracy,
        accuracy_by_round=[each.accuracy for each in rounds],
        final_accuracy=evaluate(final, test).known_accuracy,
        model_sha256=digest,
        bytes_up_median=median(up),
        bytes_up_max=max(up),
        bytes_down_median=median(down),
        bytes_down_first=median(rounds[0].bytes_down),
        round_s_median=round(median(each.wall_s for each in rounds), 3),
        round_overhead_s_median=round(median(each.overhead_s for each in rounds), 3),
        first_training_s=round(median(costs.first_training_s), 3),
        first_training_s_max=round(max(costs.first_training_s), 3),
        device_peak_rss_mb=round(max(each.peak_bytes for each in meters) / _MB, 1),
        device_sampled_peak_rss_mb=round(max(m.sampled_peak_bytes for m in meters) / _MB, 1),
        device_idle_rss_mb=round(costs.idle.rss_bytes / _MB, 1),
        device_idle_cpu_percent=round(costs.idle.cpu_percent, 3),
        wall_s=round(costs.wall_s, 1),
    )
