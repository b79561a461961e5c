# SPDX-License-Identifier: Apache-2.0
"""One run of the demo, from an empty folder to the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from fedlearn.agent.machine import State
from fedlearn.agent.trust import Trust
from fedlearn.errors import FedlearnError
from fedlearn_demo.bystander import NAME, Bystander, enrolled
from fedlearn_demo.display import Display
from fedlearn_demo.feed import Feed
from fedlearn_demo.fleet import DEADLINE_S, LINGER_S, Device, Fleet
from fedlearn_demo.idle import MEASURE_S, measure_idle
from fedlearn_demo.picture import save_picture
from fedlearn_demo.process import Nursery
from fedlearn_demo.report import Costs, Report, make_report
from fedlearn_demo.rounds import Round
from fedlearn_demo.settings import Settings
from fedlearn_demo.workspace import Workspace

# The kernel keeps the peaks of memory, so this only has to catch a trainer before it ends.
_LOOK_S = 0.25
# Starting takes a second; a slow machine with many devices some more.
_PATIENCE_S = 60.0


def run(settings: Settings, out: Path, display: Display) -> Report:
    """Run the demo; returns the report, which is on disk by then.

    Raises FedlearnError when something fails. No process is left behind in any case.
    """
    with Workspace(out) as workspace:
        with Nursery() as nursery:
            stage = _Stage(nursery, display)
            fleet = Fleet(settings, workspace, nursery)
            display.say(f"dealing 4,000 digits out to {settings.devices} devices")
            fleet.prepare()
            began = time.monotonic()
            fleet.start_aggregator()
            feed = Feed(workspace.aggregator, Trust(workspace.ca))
            stage.wait(feed.connect, "the aggregator does not start")
            display.say(f"aggregator at {feed.url}, task {fleet.task}; starting the devices")
            stage.devices = fleet.start_devices()
            stage.follow(feed, settings.rounds)
            fleet.export()
            stage.doing = f"measuring the idle devices ({LINGER_S + MEASURE_S:.0f} s)"
            trust = enrolled(feed.url, workspace.ca, fleet.spare_token, workspace.device(NAME))
            with closing(Bystander(feed.url, fleet.task, trust)) as bystander:
                stage.wait(bystander.seated, "no round has a free seat")
                stage.wait(stage.waiting, "the devices do not come to rest")
                idle = measure_idle([device.meter for device in stage.devices], stage.pause)
            first = [_first_training_s(device) for device in stage.devices]
        costs = Costs(stage.devices, idle, first, time.monotonic() - began)
        display.show(stage.rounds, "checking the final model")
        report = make_report(settings, workspace, stage.rounds, costs)
        report.save(workspace.report)
        save_picture(workspace.picture, settings.title, report.start_accuracy, stage.rounds)
        display.show(stage.rounds, "done")
    return report


class _Stage:
    """Keeps an eye on the processes, and the display alive, while something is waited for."""

    def __init__(self, nursery: Nursery, display: Display) -> None:
        self._nursery = nursery
        self._display = display
        self.devices: Sequence[Device] = ()
        self.rounds: list[Round] = []
        self.doing = "starting"

    def pause(self) -> None:
        """Let a little time pass. Raises FedlearnError if a process has ended."""
        self._nursery.check()
        for device in self.devices:
            device.meter.sample()
        self._display.show(self.rounds, self.doing)
        time.sleep(_LOOK_S)

    def wait(self, done: Callable[[], bool], complaint: str) -> None:
        """Wait until `done`; raise FedlearnError with the complaint when patience ends."""
        give_up = time.monotonic() + _PATIENCE_S
        while not done():
            if time.monotonic() > give_up:
                raise FedlearnError(complaint, hint="the logs are in the output folder")
            self.pause()

    def waiting(self) -> bool:
        """Whether every device holds a check-in and has no trainer."""
        return all(
            device.meter.idle and device.status().state == State.CHECKING_IN.value
            for device in self.devices
        )

    def follow(self, feed: Feed, count: int) -> None:
        """Wait until `count` rounds are closed and judged."""
        progress = time.monotonic()
        while len(self.rounds) < count:
            self.pause()
            seen = len(self.rounds)
            try:
                # The aggregator goes on: the rounds are without an end.
                self.rounds, self.doing = feed.poll()[:count], feed.doing
                if time.monotonic() > progress + DEADLINE_S + _PATIENCE_S:
                    raise FedlearnError(f"round {seen + 1} does not end ({self.doing})")
            except FedlearnError as error:
                self._nursery.check()  # the reason may be that a process ended
                raise FedlearnError(error.message, hint=self._trouble()) from error
            if len(self.rounds) > seen:
                progress = time.monotonic()

    def _trouble(self) -> str:
        """What the devices complain about, if they do."""
        for device in self.devices:
            with suppress(FedlearnError):  # it may not have got as far as a status
                if complaint := device.status().last_error:
                    return f"{device.name}: {complaint}"
        return "the logs are in the output folder"


def _first_training_s(device: Device) -> float:
    seconds = device.status().first_training_s
    if seconds is None:
        raise FedlearnError(f"{device.name} never trained")
    return seconds
