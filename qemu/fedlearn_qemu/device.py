# SPDX-License-Identifier: Apache-2.0
"""A device of the fleet: its card, port, machine, and what it tells of itself."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlearn.agent.status import Status
from fedlearn_qemu import card, lan
from fedlearn_qemu.guest import Guest
from fedlearn_qemu.image import Image
from fedlearn_qemu.machine import MEMORY_MB, Hardware, Machine

DATA = "/var/lib/fedlearn/data/train.npz"
UNIT = "fedlearn.service"
# A slow machine with many devices.
READY_S = 300.0
_CONFIGURATION = """\
[device]
name = {name}

[aggregator]
task = {task}
ca = "/etc/fedlearn/ca.pem"
token = "/etc/fedlearn/token"
url = {url}

[data]
path = {data}

[training]
linger_s = {linger_s}
"""


@dataclass(frozen=True, slots=True)
class Setup:
    """What all devices of a run have in common. `url` is empty where mDNS finds the aggregator."""

    image: Image
    task: str
    ca: Path
    token: Path
    url: str = ""
    memory_mb: int = MEMORY_MB
    cores: int = 1
    linger_s: float = 10.0
    more: str = ""  # of the configuration


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: the agent's resident now, the service's peak by its control group."""

    agent_rss_bytes: int
    service_peak_bytes: int
    trainer_peak_bytes: int


def prepare(
    setup: Setup, name: str, folder: Path, data: Path, more: Mapping[str, Path] | None = None
) -> Path:
    """Write the device's card and return it. `folder` is the device's own.

    `more` are files, by their names, that go beside the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    toml = folder / "fedlearn.toml"
    text = _CONFIGURATION.format(
        name=json.dumps(name),
        task=json.dumps(setup.task),
        url=json.dumps(setup.url),
        data=json.dumps(DATA),
        linger_s=setup.linger_s,
    )
    toml.write_text(text + setup.more, "utf-8")
    disk = folder / "disk.img"
    boot = {"fedlearn.toml": toml, "ca.pem": setup.ca, "token": setup.token}
    card.write(setup.image, disk, boot, {Path(DATA).name: data, **(more or {})})
    return disk


def machine(setup: Setup, drive: str, folder: Path, network: lan.Network) -> Machine:
    """The device's machine, off and plugged in. `drive` is QEMU's -drive, as `raw_drive` makes."""
    port = network.port()
    hardware = Hardware(
        memory_mb=setup.memory_mb,
        cores=setup.cores,
        network=port.options,
        append=port.append,
        prefix=network.prefix,
    )
    return Machine(setup.image, drive, folder / "console.log", hardware)


def raw_drive(disk: Path) -> str:
    """A disk of which QEMU passes all on to the host at once."""
    return f"file={disk},format=raw,cache=writeback"


def wait_until_ready(guest: Guest, timeout_s: float = READY_S) -> float:
    """Wait for the agent; return the seconds from the kernel's start to its READY=1."""
    guest.wait_until(f"systemctl is-active --quiet {UNIT}", timeout_s)
    shown = guest.check(f"systemctl show -P ActiveEnterTimestampMonotonic {UNIT}")
    return int(shown) / 1e6


def status(guest: Guest) -> Status:
    """What the agent tells of itself."""
    values = json.loads(guest.check("cat /run/fedlearn/status.json"))
    known = {field.name for field in dataclasses.fields(Status)} - {"policy"}
    return Status(**{name: value for name, value in values.items() if name in known})


def memory(guest: Guest) -> Memory:
    """What the service takes."""
    pid = guest.check(f"systemctl show -P MainPID {UNIT}").strip()
    shown = guest.check(
        f"grep VmRSS /proc/{pid}/status; "
        f"cat /sys/fs/cgroup$(systemctl show -P ControlGroup {UNIT})/memory.peak"
    )
    rss, peak = re.findall(r"\d+", shown)
    return Memory(int(rss) * 1024, int(peak), status(guest).trainer_peak_rss_bytes)
