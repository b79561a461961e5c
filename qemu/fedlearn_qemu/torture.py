# SPDX-License-Identifier: Apache-2.0
"""Power cuts at random moments of a device that trains without an end, and what they left.

After each cut the host looks at the data partition as the next boot will find it (the journal of
ext4 replayed on a copy), and the device has to boot, be ready and deliver. Three things must never
happen: a model whose bytes are not those that its name promises, an update that was on disk and is
not counted, and one that is counted twice.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedlearn.errors import FedlearnError
from fedlearn.wire import codec
from fedlearn.wire.messages import Update
from fedlearn_demo.digits import MODEL_PATH, load_train
from fedlearn_qemu import card, device, lan, tools
from fedlearn_qemu.aggregator import Aggregator, Task
from fedlearn_qemu.disk import VolatileDisk
from fedlearn_qemu.image import Image

SAMPLES = 300
# A round takes the device some two seconds: all of its steps are met.
LONGEST_WAIT_S = 4.0
DELIVER_S = 180.0
_MAX_UPDATE_BYTES = 16 * 1024 * 1024
# e2fsck(8): 1 is "errors corrected", as the replay of a journal counts.
_FSCK_FINE = 1


@dataclass(frozen=True, slots=True)
class Left:
    """What a cut left on the data partition."""

    models: int
    torn: int
    pending_round: int  # of an update that is not acknowledged; 0: none
    partial: bool  # a download was under way


@dataclass
class Cuts:
    """The outcome of all cuts."""

    seed: int
    power_cuts: int = 0
    torn_models: int = 0
    lost_updates: int = 0
    doubled_updates: int = 0
    blocks_lost: int = 0
    with_pending: int = 0
    with_partial: int = 0
    log: list[str] = field(default_factory=list)


def look(disk: Path, scratch: Path) -> Left:
    """Look at a copy of the data partition."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    part = scratch / "data.img"
    with disk.open("rb") as stream, part.open("wb") as copy:
        stream.seek(card.partitions(disk)[-1].offset_bytes)
        shutil.copyfileobj(stream, copy, 1 << 20)
    done = subprocess.run(
        ["e2fsck", "-fy", str(part)],
        capture_output=True,
        text=True,
        env={"PATH": tools.path()},
        check=False,
    )
    if done.returncode > _FSCK_FINE:
        raise FedlearnError(f"the file system is damaged: {done.stdout[-400:]}")
    tools.call(["debugfs", "-R", f"rdump /fedlearn {scratch}", part])
    state = scratch / "fedlearn"
    models = list(state.glob("models/*.tflite"))
    torn = [path for path in models if _sha256(path) != path.stem]
    pending = state / "pending.cbor"
    number = 0
    if pending.exists():
        number = codec.decode(Update, pending.read_bytes(), max_bytes=_MAX_UPDATE_BYTES).round
    return Left(len(models), len(torn), number, any(state.glob("models/*.part")))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def power_cuts(
    image: Image, folder: Path, count: int, seed: int, say: Callable[[str], None]
) -> Cuts:
    """Cut the power of one device `count` times."""
    luck = random.Random(seed)  # noqa: S311 - repeatable, not secret
    cuts = Cuts(seed)
    folder.mkdir(parents=True, exist_ok=True)
    x, y = load_train()
    np.savez(folder / "train.npz", x=x[:SAMPLES], y=y[:SAMPLES])
    with ExitStack() as stack:
        network = stack.enter_context(lan.Lan())
        task = Task("cuts", MODEL_PATH, 1)
        aggregator = stack.enter_context(Aggregator(task, folder, network))
        setup = device.Setup(image, task.name, aggregator.authority.ca, cores=2)
        path = device.prepare(setup, "device-01", folder / "device", folder / "train.npz")
        disk = stack.enter_context(VolatileDisk(path))
        machine = stack.enter_context(
            device.machine(setup, disk.drive, folder / "device", network.port(), network)
        )
        _deliver(aggregator, 0, machine.guest.wait_for_shell)
        for number in range(1, count + 1):
            wait_s = luck.uniform(0, LONGEST_WAIT_S)
            time.sleep(wait_s)
            machine.power_cut()
            written, lost = disk.power_cut(luck)
            left = look(path, folder / "look")
            accepted = _accepted(aggregator)
            machine.start()
            _deliver(aggregator, accepted, machine.guest.wait_for_shell)
            device.wait_until_ready(machine.guest)
            cuts.power_cuts += 1
            cuts.torn_models += left.torn
            cuts.blocks_lost += lost
            cuts.with_pending += bool(left.pending_round)
            cuts.with_partial += left.partial
            if left.pending_round and not _counted(aggregator, left.pending_round):
                cuts.lost_updates += 1
            line = (
                f"cut {number} of {count}, seed {seed}: {wait_s:.2f} s after an update; blocks "
                f"{written} written and {lost} lost; {left}"
            )
            cuts.log.append(line)
            say(line)
        rows = aggregator.report().rounds
        cuts.doubled_updates = sum(max(0, each.updates - 1) for each in rows)
    return cuts


def _accepted(aggregator: Aggregator) -> int:
    return sum(each.updates for each in aggregator.report().rounds)


def _counted(aggregator: Aggregator, number: int) -> bool:
    return any(each.number == number and each.updates == 1 for each in aggregator.report().rounds)


def _deliver(aggregator: Aggregator, before: int, boot: Callable[[float], None]) -> None:
    """Wait until the device has booted and delivered one update more."""
    boot(DELIVER_S)
    deadline = time.monotonic() + DELIVER_S
    while _accepted(aggregator) <= before:
        aggregator.check()
        if time.monotonic() > deadline:
            raise FedlearnError("the device delivers nothing after it was switched on")
        time.sleep(0.2)
