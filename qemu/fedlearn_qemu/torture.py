# SPDX-License-Identifier: Apache-2.0
"""Power cuts: a device loses its power, and what its disk had not flushed, over and over.

After each cut the disk is looked at from outside, before the device can mend anything: its data
partition, once its journal is replayed, must be clean, every model must have the SHA-256 that is
its name, and an update that waits to be sent must be whole. Then the device must boot and go on;
the update that waited must be what the aggregator accepts for its round.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Self

from fedlearn.errors import FedlearnError, ProtocolError
from fedlearn.jobs import MAX_JOB_BYTES
from fedlearn.wire import codec
from fedlearn.wire.messages import Update
from fedlearn_qemu import card, device, tools
from fedlearn_qemu.aggregator import Aggregator, Task
from fedlearn_qemu.image import Image
from fedlearn_qemu.lan import Network
from fedlearn_qemu.writecache import Loss, WriteCache

# A device is emulated and boots for up to minutes; a round that waits for it must stay open.
_DEADLINE_S = 900.0
_INTERVAL_S = 2.0
# From the power on to somewhere in the second half of the first boot, on a fast and a slow host.
_BOOT_S = (4.0, 40.0)
# Two rounds of a device on a slow host.
_LIFE_S = (0.0, 20.0)
_NEXT_WRITE_S = 20.0
_LOOK_S = 0.0005
_STATE = "/fedlearn"
# Beside the device's data, for a training by hand.
MODEL = "model.tflite"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What the disk held after a cut, before the next boot."""

    models: tuple[str, ...]  # digests in hexadecimal, all intact
    torn: tuple[str, ...]  # names of files that are not what they should be
    partial: bool  # a download was under way
    pending: tuple[int, str] | None  # round and SHA-256 of the update that waits

    @property
    def moment(self) -> str:
        """What was going on, for a person."""
        if self.pending:
            return f"the update of round {self.pending[0]} waited"
        return "a download was under way" if self.partial else "no update waited"


@dataclass(frozen=True, slots=True)
class Cut:
    """One power cut and what became of it."""

    seed: int
    when: str
    loss: Loss
    found: Found
    ready_s: float  # of the boot after it
    update_lost: bool  # it had waited, and the aggregator did not get it


class Victim:
    """A device that trains in rounds without an end; a context manager, in which it is on."""

    def __init__(
        self, image: Image, model: Path, data: Path, folder: Path, network: Network, *, seed: int
    ) -> None:
        self._folder, self._seed, self._cuts = folder, seed, 0
        task = Task("torture", model, 1, deadline_s=_DEADLINE_S, interval_s=_INTERVAL_S)
        self._aggregator = Aggregator(task, folder, network)
        source = self._aggregator
        setup = device.Setup(image, task.name, source.ca, source.token, cores=2)
        disk = device.prepare(setup, "victim", folder / "device", data, {MODEL: model})
        self._cache = WriteCache(disk)
        self.machine = device.machine(setup, self._cache.drive, folder / "device", network)
        self._stack = ExitStack()
        self._had_models = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._cache.forget)
            stack.enter_context(self._aggregator)
            self._cache.switch_on()
            stack.enter_context(self.machine)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cut(self, say: Say) -> Cut:
        """Cut the power at a random moment, look, boot, and see the device go on.

        The first moment is in the first boot, which provisions the device and lets its partition
        grow; the others are in the life of the agent, every second of them while it writes. Raises
        FedlearnError when the device does not come back.
        """
        number, self._cuts = self._cuts, self._cuts + 1
        seed = self._seed * 1000 + number
        random = Random(seed)  # noqa: S311 - seeded on purpose
        delay_s = random.uniform(*(_LIFE_S if number else _BOOT_S))
        when = f"{delay_s:.1f} s after the {'start' if number else 'power on'}"
        time.sleep(delay_s)
        if number % 2 and self._wait_for_write(random.randrange(1, 12)):
            when += ", while it wrote"
        self.machine.power_cut()
        loss = self._cache.cut(random)
        found = self._look(is_new=not number)
        say(f"cut {number + 1}, seed {seed}: {when}; {loss.lost} of {loss.unflushed} blocks lost, "
            f"{found.moment}")  # fmt: skip
        before = max(self.updates(), default=0)
        self._cache.switch_on()
        self.machine.start()
        self.machine.guest.wait_for_shell(device.READY_S)
        ready_s = device.wait_until_ready(self.machine.guest)
        lost = not self._goes_on(found, before)
        say(f"ready after {ready_s:.0f} s, and goes on{' WITHOUT its update' if lost else ''}")
        return Cut(seed, when, loss, found, ready_s, lost)

    def updates(self) -> dict[int, str]:
        """Round -> SHA-256 of the update that counts in it, where the store still has it.

        Raises FedlearnError should one count twice.
        """
        store = self._folder / "aggregator" / "aggregator.sqlite"
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT round, hex(digest) FROM updates").fetchall()
        if len(rows) != len({number for number, _ in rows}):
            raise FedlearnError(f"a round has two updates of one device: {rows}")
        return {number: digest.lower() for number, digest in rows}

    def _wait_for_write(self, number: int) -> bool:
        """Wait for the next writes, so many of them: the log of the disk grows."""
        deadline = time.monotonic() + _NEXT_WRITE_S
        size = self._cache.log.stat().st_size
        while time.monotonic() < deadline:
            if (now := self._cache.log.stat().st_size) > size:
                size, number = now, number - 1
                if not number:
                    return True
            time.sleep(_LOOK_S)
        return False

    def _look(self, *, is_new: bool) -> Found:
        """What is on the data partition, seen from outside on a copy.

        Raises FedlearnError when all is gone; a partition that `is_new` may be empty.
        """
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            data, disk = Path(folder) / "data.img", self._cache.disk
            offset = card.partitions(disk)[-1].offset_bytes
            words = [f"skip={offset}", "iflag=skip_bytes", "bs=1M", "conv=sparse", "status=none"]
            tools.call(["dd", f"if={disk}", f"of={data}", *words])
            tools.call(["e2fsck", "-E", "journal_only", "-y", data])
            tools.call(["e2fsck", "-f", "-n", data])
            tools.call(["debugfs", "-R", f"rdump {_STATE} {folder}", data])
            state = Path(folder) / Path(_STATE).name
            if not is_new and not state.is_dir():
                raise FedlearnError(f"the data partition has no {_STATE}", hint=f"see {disk}")
            found = examine(state)
        if self._had_models and not found.models:
            raise FedlearnError("the data partition has no model any more", hint=f"see {disk}")
        self._had_models = bool(found.models)
        return found

    def _goes_on(self, found: Found, before: int) -> bool:
        """Wait for an update of a round after `before`, and after that of the one that waited.

        Return whether the one that waited is what counted in its round.
        """
        waited, digest = found.pending or (0, "")
        counted = ""
        deadline = time.monotonic() + device.READY_S
        while True:
            updates = self.updates()
            counted = updates.get(waited, counted)
            if max(updates, default=0) > max(before, waited):
                return counted == digest
            if time.monotonic() > deadline:
                raise FedlearnError("the device trains no more", hint=f"see {self._folder}")
            time.sleep(0.5)


def examine(state: Path) -> Found:
    """What an agent's state directory holds, judged without the agent."""
    models: list[str] = []
    torn: list[str] = []
    pending = None
    for path in sorted(state.glob("models/*.tflite")):
        whole = hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
        (models if whole else torn).append(path.stem if whole else path.name)
    waiting = state / "pending.cbor"
    if waiting.exists():
        body = waiting.read_bytes()
        try:
            update = codec.decode(Update, body, max_bytes=MAX_JOB_BYTES)
            pending = update.round, hashlib.sha256(body).hexdigest()
        except ProtocolError:
            torn.append(waiting.name)
    for path in sorted(state.glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            torn.append(path.name)
    torn += [path.name for path in state.rglob("*.corrupt")]
    partial = any(state.glob("models/*.part"))
    return Found(tuple(models), tuple(torn), partial, pending)
