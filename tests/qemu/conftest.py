# SPDX-License-Identifier: Apache-2.0
"""One emulated device for all tests of a module; it trains in rounds without an end.

It boots the stand-in image, or the one of BitBake's deploy folder that FEDLEARN_IMAGE names
(`make test-image IMAGE=<folder>`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import FedlearnError
from fedlearn_demo.digits import MODEL_PATH, load_train
from fedlearn_qemu import device, lan, tools
from fedlearn_qemu.aggregator import Aggregator, Task
from fedlearn_qemu.deploy import deployed
from fedlearn_qemu.guest import Guest
from fedlearn_qemu.image import Image
from fedlearn_qemu.machine import Machine
from fedlearn_qemu.source import source_root
from fedlearn_qemu.standin.make import stand_in

DEPLOY = os.environ.get("FEDLEARN_IMAGE", "")
CACHE = source_root() / "build/qemu/cache"
MODEL = "/var/lib/fedlearn/data/digits.tflite"
# What says that Debian's or PyPI's packages are out of reach.
_UNREACHABLE = ("mmdebstrap failed", "pip download failed")
# Between two rounds the device is idle for a moment.
INTERVAL_S = 4.0


@pytest.fixture(scope="session")
def image() -> Image:
    lost = tools.missing((*tools.BOOT, *tools.BUILD, *tools.LAN, *tools.LOSS, *tools.TORTURE))
    if lost:
        packages = " ".join(sorted({tools.PACKAGES[name] for name in lost}))
        pytest.skip(f"no device is emulated: {', '.join(lost)} missing (apt install {packages})")
    if not lan.usable():
        pytest.skip("no device is emulated: a LAN of its own needs root and /dev/net/tun")
    if DEPLOY:
        return deployed(Path(DEPLOY), CACHE)
    try:
        return stand_in(CACHE, print)
    except FedlearnError as error:
        if str(error).startswith(_UNREACHABLE):
            pytest.skip(f"no device is emulated, its packages cannot be had: {error}")
        raise


@dataclass(frozen=True)
class Board:
    """The device that is on, and what it is connected to."""

    machine: Machine
    aggregator: Aggregator
    network: lan.Lan
    ready_s: float
    data: Path

    @property
    def guest(self) -> Guest:
        return self.machine.guest

    def updates(self) -> int:
        return sum(each.updates for each in self.aggregator.report().rounds)


@pytest.fixture(scope="module")
def board(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    task = Task("board", MODEL_PATH, 1, interval_s=INTERVAL_S, deadline_s=60)
    with switched_on(image, task, 300, tmp_path_factory.mktemp("board")) as board:
        yield board


@contextmanager
def switched_on(image: Image, task: Task, samples: int, folder: Path) -> Iterator[Board]:
    """A device of its own for a task, with so many samples, until its agent is ready."""
    x, y = load_train()
    data = folder / "train.npz"
    np.savez(data, x=x[:samples], y=y[:samples])
    with ExitStack() as stack:
        network = stack.enter_context(lan.Lan())
        aggregator = stack.enter_context(Aggregator(task, folder, network))
        setup = device.Setup(image, task.name, aggregator.ca, aggregator.token, cores=2)
        more = {"digits.tflite": MODEL_PATH}
        disk = device.prepare(setup, "board", folder / "device", data, more)
        drive = device.raw_drive(disk)
        machine = stack.enter_context(device.machine(setup, drive, folder / "device", network))
        machine.guest.wait_for_shell(device.READY_S)
        ready_s = device.wait_until_ready(machine.guest)
        yield Board(machine, aggregator, network, ready_s, data)
