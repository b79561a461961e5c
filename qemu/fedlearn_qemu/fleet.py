# SPDX-License-Identifier: Apache-2.0
"""A run: an aggregator and emulated devices on a LAN of their own, until the rounds are closed."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.text import counted
from fedlearn_aggregator.report import RoundReport
from fedlearn_demo.digits import MODEL_PATH, dirichlet_split, load_test, load_train
from fedlearn_qemu import device, lan
from fedlearn_qemu.aggregator import PORT, Aggregator, Task
from fedlearn_qemu.image import Image
from fedlearn_qemu.machine import Machine
from fedlearn_qemu.report import DeviceReport, Report
from fedlearn_qemu.settings import Settings

_LOOK_S = 0.5
_MARKER = ".fedlearn-qemu"
Say = Callable[[str], None]


@dataclass
class Member:
    """A device of the run; a thread of its own follows its boot, which is slow to answer."""

    name: str
    image: Image
    samples: int
    machine: Machine
    say: Say
    ready_s: float | None = None
    failure: FedlearnError | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        try:
            self.machine.guest.wait_for_shell(device.READY_S)
            self.say(f"{self.name} boots")
            self.ready_s = device.wait_until_ready(self.machine.guest)
            self.say(f"{self.name} is ready, {self.ready_s:.0f} s after its kernel's start")
        except FedlearnError as error:
            self.failure = error


def run(settings: Settings, images: Sequence[Image], out: Path, say: Say) -> Report:
    """Run the fleet, each device with its image; results and logs are in `out`.

    Nothing of it is left running.
    """
    began = time.monotonic()
    empty(out)
    shards = deal(settings, out)
    alone = settings.user_network or not lan.usable()
    network: lan.Network = lan.UserNetwork() if alone else lan.Lan()
    say(f"network: {network.words}")
    with ExitStack() as stack:
        stack.enter_context(network)
        task = Task(
            "digits",
            MODEL_PATH,
            settings.devices,
            rounds=settings.rounds,
            tail=settings.tail,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            seed=settings.seed,
            test_data=out / "test.npz",
        )
        aggregator = stack.enter_context(Aggregator(task, out, network))
        url = "" if network.multicast else f"https://{network.address}:{PORT}"
        members = []
        for image, (name, samples) in zip(images, shards.items(), strict=True):
            folder = out / name
            setup = device.Setup(
                image,
                task.name,
                aggregator.ca,
                aggregator.token,
                url,
                memory_mb=settings.memory_mb,
                cores=settings.cores,
            )
            disk = device.prepare(setup, name, folder, folder / "train.npz")
            drive = device.raw_drive(disk)
            machine = device.machine(setup, drive, folder, network)
            members.append(Member(name, image, samples, stack.enter_context(machine), say))
            say(f"{name} is on: {settings.memory_mb} MB, {samples} samples")
        for member in members:
            member.thread.start()
        first_s = _follow(settings, aggregator, members, say, began)
        devices = tuple(_ask(member, say) for member in members)
        rounds = aggregator.report().rounds
        closed = [each.number for each in rounds if each.state == "closed"]
        if closed:
            aggregator.export(closed[-1], out / "digits-final.tflite")
        for member in members:
            member.machine.power_cut()
            (out / member.name / "disk.img").unlink()
    report = Report(
        image_mb={each.name: round(each.mb, 1) for each in dict.fromkeys(images)},
        network=network.words,
        devices=devices,
        rounds=rounds,
        first_update_s=round(first_s, 1),
        wall_s=round(time.monotonic() - began, 1),
    )
    (out / "report.json").write_text(report.to_json() + "\n", "utf-8")
    return report


def deal(settings: Settings, out: Path) -> dict[str, int]:
    """Write each device's samples and the test data; return the numbers of samples."""
    x, y = load_train()
    x, y = x[: settings.samples], y[: settings.samples]
    try:
        parts = dirichlet_split(y, settings.devices, settings.alpha, settings.seed)
    except ValueError as error:
        raise ConfigError(str(error), hint="see --devices, --samples and --seed") from error
    shards = {}
    for number, part in enumerate(parts, 1):
        name = f"device-{number:02}"
        (out / name).mkdir(parents=True)
        np.savez(out / name / "train.npz", x=x[part], y=y[part])
        shards[name] = len(part)
    x_test, y_test = load_test()
    np.savez(out / "test.npz", x=x_test, y=y_test)
    return shards


def _follow(
    settings: Settings,
    aggregator: Aggregator,
    members: Sequence[Member],
    say: Say,
    began: float,
) -> float:
    """Wait for the rounds; return the seconds to the first accepted update."""
    first_s: float | None = None
    told: set[int] = set()
    while True:
        aggregator.check()
        for member in members:
            if member.failure is not None:
                raise member.failure
            if not member.machine.running():
                raise FedlearnError(f"{member.name} is off", hint="see its console.log")
        report = aggregator.report()
        if first_s is None and any(each.updates for each in report.rounds):
            first_s = time.monotonic() - began
            say(f"the first update is accepted, {first_s:.0f} s after the start")
        for each in report.rounds:
            if each.state == "closed" and each.number not in told and each.accuracy is not None:
                told.add(each.number)
                say(_line(each))
        if report.state == "finished" and first_s is not None and len(told) == settings.rounds:
            return first_s
        if time.monotonic() - began > settings.limit_s:
            raise FedlearnError(
                f"not finished after {settings.limit_s:.0f} s", hint="see --limit-s and the logs"
            )
        time.sleep(_LOOK_S)


def _line(each: RoundReport) -> str:
    up = sum(each.bytes_up) / max(1, len(each.bytes_up)) / 1000
    accuracy = f"accuracy {each.accuracy:.1%}" if each.accuracy is not None else "no accuracy"
    return f"round {each.number}: {counted(each.updates, 'update')} of {up:.1f} kB, {accuracy}"


def _ask(member: Member, say: Say) -> DeviceReport:
    member.thread.join(device.READY_S)
    guest = member.machine.guest
    (log,) = [member.machine.console.with_name("agent.log")]
    log.write_text(guest.check(f"journalctl -u {device.UNIT} --no-pager", 120), "utf-8")
    return DeviceReport.of(
        member.name,
        member.image.name,
        member.samples,
        ready_s=member.ready_s or 0.0,
        status=device.status(guest),
        memory=device.memory(guest),
    )


def empty(out: Path) -> None:
    """Make the folder, or empty it if it is one of ours."""
    marker = out / _MARKER
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise ConfigError(f"{out} holds files of others", hint="name another folder with --out")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    marker.touch()
