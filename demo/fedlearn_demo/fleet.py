# SPDX-License-Identifier: Apache-2.0
"""The aggregator and the devices of a run, each a process of its own on loopback.

The devices get no address: they find the aggregator by mDNS, as they would on a LAN.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedlearn.agent.status import Status, read_status
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn_demo.digits import MODEL_PATH, dirichlet_split, load_test, load_train
from fedlearn_demo.meter import Meter
from fedlearn_demo.process import Nursery
from fedlearn_demo.settings import Settings
from fedlearn_demo.workspace import Workspace

LOOPBACK = "127.0.0.1"
# A round of the digits takes a second or two; a very slow machine needs more.
DEADLINE_S = 60.0
# Longer than a round, so that the trainer stays from one to the next; short enough to be seen gone.
LINGER_S = 5.0

_DEVICE_TOML = """\
# SPDX-License-Identifier: Apache-2.0
[device]
name = {name}
state_dir = "state"
runtime_dir = "run"

[aggregator]
task = {task}
ca = {ca}
token = "token"
interfaces = ["{loopback}"]

[data]
path = "digits.npz"

[training]
linger_s = {linger_s}
"""


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the fleet; `meter` follows its processes."""

    name: str
    samples: int
    meter: Meter
    status_file: Path

    def status(self) -> Status:
        """What its agent tells of itself. Raises FedlearnError when it has not told anything."""
        return read_status(self.status_file)


class Fleet:
    """Prepares the files of a run, then starts its processes in `nursery`."""

    def __init__(self, settings: Settings, workspace: Workspace, nursery: Nursery) -> None:
        self._settings = settings
        self._workspace = workspace
        self._nursery = nursery
        # Two demos on one machine share its loopback: neither may take the other's devices.
        self.task = f"digits-{secrets.token_hex(3)}"
        self.spare_token = ""
        self._shards: dict[str, int] = {}

    def prepare(self) -> None:
        """Write every device's shard and configuration, and make the task."""
        settings, workspace = self._settings, self._workspace
        x, y = load_train()
        try:
            shards = dirichlet_split(y, settings.devices, settings.alpha, settings.seed)
        except ValueError as error:
            raise ConfigError(str(error), hint="see --devices, --alpha and --seed") from error
        for number, shard in enumerate(shards, 1):
            name = f"device-{number:02}"
            folder = workspace.device(name)
            for each in (folder, folder / "state", folder / "run"):
                each.mkdir()
            np.savez(folder / "digits.npz", x=x[shard], y=y[shard])
            toml = _DEVICE_TOML.format(
                name=json.dumps(name),
                task=json.dumps(self.task),
                ca=json.dumps(str(workspace.ca)),
                loopback=LOOPBACK,
                linger_s=LINGER_S,
            )
            (folder / "fedlearn.toml").write_text(toml)
            self._shards[name] = len(shard)
        x_test, y_test = load_test()
        np.savez(workspace.test_data, x=x_test, y=y_test)
        self._aggregator_command(
            "init",
            *("--task", self.task, "--model", str(MODEL_PATH), "--tail", settings.tail),
            *("--cohort", str(settings.devices), "--minimum", str(settings.devices)),
            *("--over-selection", "1", "--deadline-s", str(DEADLINE_S)),
            # Without an end: the devices' cost is measured while they wait for a further round.
            *("--rounds", "0", "--round-interval-s", "0"),
            *("--epochs", str(settings.epochs), "--batch-size", str(settings.batch_size)),
            *("--learning-rate", str(settings.learning_rate), "--seed", str(settings.seed)),
            *("--tokens", "0"),
        )
        # One more for the participant by which the devices' idling is measured.
        tokens = self.make_tokens(settings.devices + 1)
        for name in self._shards:
            (workspace.device(name) / "token").write_text(tokens.pop())
        self.spare_token = tokens.pop()

    def make_tokens(self, count: int) -> list[str]:
        """One-time tokens to enrol with."""
        shown = self._aggregator_command("tokens", "--count", str(count), "--json")
        return [each["token"] for each in json.loads(shown)]

    def start_aggregator(self) -> None:
        """Start the aggregator on a free port."""
        command = self._aggregator(
            "serve",
            *("--host", LOOPBACK, "--port", "0", "--interface", LOOPBACK),
            *("--evaluate", str(self._workspace.test_data)),
        )
        self._nursery.start("the aggregator", command, self._workspace.log("aggregator"))

    def start_devices(self) -> list[Device]:
        """Start the agents."""
        devices = []
        for name, samples in self._shards.items():
            folder = self._workspace.device(name)
            command = [sys.executable, "-I", "-m", "fedlearn", "agent", "--config"]
            child = self._nursery.start(
                name, [*command, str(folder / "fedlearn.toml")], folder / "agent.log"
            )
            status_file = folder / "run" / "status.json"
            devices.append(Device(name, samples, Meter(child.pid), status_file))
        return devices

    def export(self) -> None:
        """Take the model of the last round that was asked for out of the aggregator."""
        last = str(self._settings.rounds)
        self._aggregator_command("export", "--round", last, str(self._workspace.final_model))

    def _aggregator(self, *arguments: str) -> list[str]:
        command, *rest = arguments
        module = [sys.executable, "-m", "fedlearn_aggregator", command]
        return [*module, "--data-dir", str(self._workspace.aggregator), *rest]

    def _aggregator_command(self, *arguments: str) -> str:
        done = subprocess.run(
            self._aggregator(*arguments), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise FedlearnError(
                f"fedlearn-aggregator {arguments[0]} failed: {done.stderr.strip()[-500:]}"
            )
        return done.stdout
