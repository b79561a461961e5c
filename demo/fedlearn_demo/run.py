# SPDX-License-Identifier: Apache-2.0
"""One run of the demo, from an empty folder to the report."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from fedlearn.dataset import Dataset
from fedlearn.errors import FedlearnError
from fedlearn.model import Model
from fedlearn.runtime import evaluate, runtime_name
from fedlearn.status import read_status
from fedlearn_demo.digits import MODEL_PATH
from fedlearn_demo.display import Display
from fedlearn_demo.feed import Feed
from fedlearn_demo.fleet import DEADLINE_S, LINGER_S, Device, Fleet
from fedlearn_demo.meter import cpu_s, memory
from fedlearn_demo.picture import save_picture
from fedlearn_demo.process import Nursery
from fedlearn_demo.report import Report
from fedlearn_demo.rounds import Round
from fedlearn_demo.settings import Settings
from fedlearn_demo.workspace import Workspace

MB = 1e6
# The kernel keeps the peaks, so this only has to catch a trainer before it ends.
_LOOK_S = 0.25
# Starting takes a second; a slow machine with many devices some more.
_START_S = 60.0
# Long enough to see a poll every few seconds, short enough not to bore.
_IDLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Idle:
    """The devices between rounds: bytes of the largest agent, CPU of the mean one."""

    rss_bytes: int
    cpu_percent: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured beside the rounds themselves."""

    devices: Sequence[Device]
    idle: Idle
    first_training_s: Sequence[float]
    wall_s: float


def run(settings: Settings, out: Path, display: Display) -> Report:
    """Run the demo; returns the report, which is on disk by then.

    Raises FedlearnError when something fails. No process is left behind in any case.
    """
    with Workspace(out) as workspace:
        with Nursery() as nursery:
            fleet = Fleet(settings, workspace, nursery)
            display.say(f"dealing 4,000 digits out to {settings.devices} devices")
            fleet.prepare()
            began = time.monotonic()
            fleet.start_aggregator()
            feed = Feed(workspace.aggregator)
            _wait(feed.connect, nursery, _START_S, "the aggregator does not answer")
            display.say(f"aggregator at {feed.url}, task {fleet.task}; starting the devices")
            devices = fleet.start_devices()
            rounds = _follow(settings, nursery, feed, devices, display)
            fleet.export()
            doing = f"measuring the idle devices ({LINGER_S + _IDLE_S:.0f} s)"
            idle = _measure_idle(nursery, devices, lambda: display.show(rounds, doing))
            first = [_first_training_s(workspace, device) for device in devices]
        wall_s = time.monotonic() - began
        display.show(rounds, "checking the final model")
        costs = Costs(devices, idle, first, wall_s)
        report = _report(settings, workspace, rounds, costs)
        report.save(workspace.report)
        save_picture(workspace.picture, settings.title, report.start_accuracy, rounds)
        display.show(rounds, "done")
    return report


def _follow(
    settings: Settings, nursery: Nursery, feed: Feed, devices: Sequence[Device], display: Display
) -> list[Round]:
    """Show the rounds until all are closed and judged."""
    rounds: list[Round] = []
    patience_s = DEADLINE_S + _START_S
    give_up = time.monotonic() + patience_s
    while len(rounds) < settings.rounds:
        nursery.check()
        if time.monotonic() > give_up:
            raise FedlearnError(
                f"round {len(rounds) + 1} does not end: {feed.doing}",
                hint="the logs are in the output folder; does loopback pass multicast?",
            )
        for device in devices:
            device.meter.sample()
        seen = len(rounds)
        rounds = feed.poll()
        if len(rounds) > seen:
            give_up = time.monotonic() + patience_s
        display.show(rounds, feed.doing)
        time.sleep(_LOOK_S)
    return rounds


def _wait(done: Callable[[], bool], nursery: Nursery, patience_s: float, complaint: str) -> None:
    give_up = time.monotonic() + patience_s
    while not done():
        nursery.check()
        if time.monotonic() > give_up:
            raise FedlearnError(complaint, hint="the logs are in the output folder")
        time.sleep(_LOOK_S)


def _measure_idle(nursery: Nursery, devices: Sequence[Device], tick: Callable[[], None]) -> Idle:
    """Wait until no trainer is left, then leave the agents alone for a while."""

    def alone() -> bool:
        tick()
        for device in devices:
            device.meter.sample()
        return all(device.meter.idle for device in devices)

    _wait(alone, nursery, LINGER_S + _START_S, "a trainer does not end")
    before = [cpu_s(device.meter.pid) for device in devices]
    start = time.monotonic()
    while (passed_s := time.monotonic() - start) < _IDLE_S:
        tick()
        nursery.check()
        time.sleep(_LOOK_S)
    used_s = mean(cpu_s(d.meter.pid) - b for d, b in zip(devices, before, strict=True))
    found = [memory(device.meter.pid) for device in devices]
    return Idle(max(each.rss_bytes for each in found if each), 100 * used_s / passed_s)


def _first_training_s(workspace: Workspace, device: Device) -> float:
    status = read_status(workspace.device(device.name) / "run" / "status.json")
    if status.first_training_s is None:
        raise FedlearnError(f"{device.name} never trained")
    return status.first_training_s


def _report(
    settings: Settings, workspace: Workspace, rounds: Sequence[Round], costs: Costs
) -> Report:
    final = workspace.final_model.read_bytes()
    digest = hashlib.sha256(final).hexdigest()
    if digest != rounds[-1].model:
        raise FedlearnError("the exported model is not that of the last round")
    start = MODEL_PATH.read_bytes()
    test = Dataset.load(workspace.test_data, Model.parse(final))
    up = [size for each in rounds for size in each.bytes_up]
    down = [size for each in rounds for size in each.bytes_down]
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
        start_accuracy=evaluate(start, test).accuracy,
        accuracy_by_round=[each.accuracy for each in rounds],
        final_accuracy=evaluate(final, test).accuracy,
        model_sha256=digest,
        bytes_up_median=median(up),
        bytes_up_max=max(up),
        bytes_down_median=median(down),
        bytes_down_first=median(rounds[0].bytes_down),
        round_s_median=round(median(each.wall_s for each in rounds), 3),
        round_overhead_s_median=round(median(each.overhead_s for each in rounds), 3),
        first_training_s=round(median(costs.first_training_s), 3),
        first_training_s_max=round(max(costs.first_training_s), 3),
        device_peak_rss_mb=round(max(d.meter.peak_bytes for d in costs.devices) / MB, 1),
        device_sampled_peak_rss_mb=round(
            max(d.meter.sampled_peak_bytes for d in costs.devices) / MB, 1
        ),
        device_idle_rss_mb=round(costs.idle.rss_bytes / MB, 1),
        device_idle_cpu_percent=round(costs.idle.cpu_percent, 3),
        wall_s=round(costs.wall_s, 1),
    )
