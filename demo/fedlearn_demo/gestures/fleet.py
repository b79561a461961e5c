# SPDX-License-Identifier: Apache-2.0
"""One device a person: its sensor, what collects from it, and later its agent and the aggregator.

Each is a process of its own. The agents get no address: they find the aggregator by mDNS.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedlearn.agent.status import read_status
from fedlearn.collect import report
from fedlearn.collect.ring import read_ring
from fedlearn.errors import FedlearnError
from fedlearn_demo.gestures import people
from fedlearn_demo.gestures.people import GRID, Windows
from fedlearn_demo.gestures.settings import Settings
from fedlearn_demo.gestures.watch import CHANNELS, CLASSES, PEOPLE, STRIDE, WINDOW, Recording
from fedlearn_demo.process import Child, Nursery

MODEL_PATH = Path(__file__).with_name("gestures.tflite")
LOOPBACK = "127.0.0.1"
DEADLINE_S = 120.0
LINGER_S = 10.0

_TOML = """\
# SPDX-License-Identifier: Apache-2.0
[device]
name = "{name}"
state_dir = "state-{number}"
runtime_dir = "run"

[aggregator]
task = "{task}"
ca = "{ca}"
token = "token-{number}"
interfaces = ["{loopback}"]

[source]
kind = "serial"
port = "{port}"
labelled = true

[samples]
channels = {channels}
classes = {classes}
window = {window}
stride = {stride}
scale = {scale}
step = {step}
zero_point = {zero_point}

[ring]
path = "ring"
sync_s = 1

[training]
personal_epochs = {personal_epochs}
linger_s = {linger_s}
"""


@dataclass(frozen=True, slots=True)
class Person:
    """A device and whose it is."""

    number: int
    folder: Path
    expected: int  # windows that the stream makes

    @property
    def name(self) -> str:
        """The device's name."""
        return f"person-{self.number:02}"

    @property
    def ring(self) -> Path:
        """What it has collected."""
        return self.folder / "ring"

    def config(self, choice: int) -> Path:
        """The configuration for one choice of the held out, counted from 1."""
        return self.folder / f"fedlearn-{choice}.toml"

    def personal(self, choice: int) -> Path:
        """Its own copy of the model, after the rounds."""
        return self.folder / f"state-{choice}/personal.tflite"

    def collected(self) -> int:
        """The windows that are on its disk by now."""
        status = report.read(self.folder / "run" / report.FILE)
        return 0 if status is None else status.stored

    def complaint(self) -> str:
        """What its agent complains about."""
        try:
            return read_status(self.folder / "run/status.json").last_error
        except FedlearnError:
            return ""


class Fleet:
    """Prepares the files of a run in `root`, and starts its processes."""

    def __init__(self, settings: Settings, root: Path, recordings: Collection[Recording]) -> None:
        self._settings, self._root, self._recordings = settings, root, recordings
        # Two demos on one machine share its loopback: neither may take the other's devices.
        self._run = secrets.token_hex(3)
        self.people = [self._prepare(number) for number in PEOPLE]

    def task(self, choice: int) -> str:
        """The task of one choice of the held out."""
        return f"gestures-{self._run}-{choice}"

    def start_collecting(self, nursery: Nursery) -> None:
        """Start the sensors and the processes that read them."""
        pairs = [
            str(path)
            for each in self.people
            for path in (each.folder / "stream.csv", each.folder / "port")
        ]
        replay = [sys.executable, "-I", "-m", "fedlearn_demo.gestures.replay"]
        nursery.start(
            "the replayer",
            [*replay, str(self._settings.speed), *pairs],
            self._root / "replay.log",
        )
        for each in self.people:
            command = [sys.executable, "-I", "-m", "fedlearn", "collect", "--config"]
            nursery.start(each.name, [*command, str(each.config(1))], each.folder / "collect.log")

    def check(self) -> None:
        """Raise FedlearnError unless the rings hold what the streams' windows should be."""
        for each in self.people:
            wanted = people.trained(people.of(self._recordings, each.number))
            grid, windows = read_ring(each.ring)
            got = sorted((window.label, window.data) for window in windows)
            if grid != GRID or got != sorted(
                (int(label), x.tobytes()) for x, label in zip(wanted.x, wanted.y, strict=True)
            ):
                raise FedlearnError(f"{each.name} has collected other windows than were sent")

    def start_aggregator(self, nursery: Nursery, choice: int, held_out: Windows) -> Path:
        """Begin the task and start the aggregator; returns its directory."""
        settings, folder = self._settings, self.folder(choice)
        folder.mkdir()
        test = folder / "held-out.npz"
        np.savez(test, x=held_out.x, y=held_out.y)
        devices = len(PEOPLE) - len(settings.choices[choice - 1])
        self.aggregator(
            choice,
            "init",
            *("--task", self.task(choice), "--model", str(MODEL_PATH)),
            *("--cohort", str(devices), "--minimum", str(devices), "--over-selection", "1"),
            *("--deadline-s", str(DEADLINE_S), "--rounds", str(settings.rounds)),
            *("--epochs", str(settings.epochs), "--batch-size", str(settings.batch_size)),
            *("--learning-rate", str(settings.learning_rate), "--seed", str(settings.seed)),
            *("--tokens", "0"),
        )
        shown = self.aggregator(choice, "tokens", "--count", str(len(self.people)), "--json")
        for each, made in zip(self.people, json.loads(shown), strict=True):
            (each.folder / f"token-{choice}").write_text(made["token"])
        options = ("--host", LOOPBACK, "--port", "0", "--interface", LOOPBACK)
        command = self._command(choice, "serve", *options, "--evaluate", str(test))
        nursery.start("the aggregator", command, folder / "aggregator.log")
        return folder / "aggregator"

    def start_agents(self, nursery: Nursery, choice: int, seen: Sequence[Person]) -> list[Child]:
        """Start the agents of those who take part."""
        command = [sys.executable, "-I", "-m", "fedlearn", "agent", "--config"]
        return [
            nursery.start(
                each.name,
                [*command, str(each.config(choice))],
                each.folder / f"agent-{choice}.log",
            )
            for each in seen
        ]

    def folder(self, choice: int) -> Path:
        """What belongs to one choice of the held out."""
        return self._root / f"choice-{choice}"

    def ca(self, choice: int) -> Path:
        """The CA that certifies the aggregator and its devices."""
        return self.folder(choice) / "aggregator/identity/ca.pem"

    def aggregator(self, choice: int, *arguments: str) -> str:
        """A command of the aggregator to its end; returns what it prints."""
        command = self._command(choice, *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FedlearnError(
                f"fedlearn-aggregator {arguments[0]} failed: {done.stderr.strip()[-500:]}"
            )
        return done.stdout

    def _command(self, choice: int, command: str, *arguments: str) -> list[str]:
        directory = str(self.folder(choice) / "aggregator")
        module = [sys.executable, "-I", "-m", "fedlearn_aggregator", command]
        return [*module, "--data-dir", directory, *arguments]

    def _prepare(self, number: int) -> Person:
        recordings = people.of(self._recordings, number)
        person = Person(
            number,
            self._root / f"person-{number:02}",
            len(people.trained(recordings)),
        )
        person.folder.mkdir()
        (person.folder / "run").mkdir()
        (person.folder / "stream.csv").write_text(people.stream(recordings))
        for choice in range(1, len(self._settings.choices) + 1):
            person.config(choice).write_text(
                _TOML.format(
                    name=person.name,
                    number=choice,
                    task=self.task(choice),
                    ca=self.ca(choice),
                    loopback=LOOPBACK,
                    port=person.folder / "port",
                    channels=json.dumps(CHANNELS),
                    classes=json.dumps(CLASSES),
                    window=WINDOW,
                    stride=STRIDE,
                    scale=json.dumps(GRID.scale),
                    step=GRID.step,
                    zero_point=GRID.zero_point,
                    personal_epochs=self._settings.personal_epochs,
                    linger_s=LINGER_S,
                )
            )
        return person
