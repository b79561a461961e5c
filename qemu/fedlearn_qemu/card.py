# SPDX-License-Identifier: Apache-2.0
"""A device's own disk: a copy of the image, provisioned as a person provisions a card.

Configuration, CA and token go into fedlearn/ of the boot partition, from where the image takes them
over at boot. The training data go to the data partition. A bare ext4 image gets all of it in place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlearn.errors import FedlearnError
from fedlearn_qemu import tools
from fedlearn_qemu.image import Image

# What the data partition can grow by at the first boot.
ROOM_MB = 128
_SECTOR = 512
# sfdisk's names of the types of FAT and EFI system partitions.
_FAT = ("b", "c", "ef", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B")


@dataclass(frozen=True, slots=True)
class Partition:
    """Where a partition is on the disk."""

    offset_bytes: int
    fat: bool


def partitions(disk: Path) -> list[Partition]:
    """The partitions of a disk; none when it is one file system."""
    try:
        listed = json.loads(tools.call(["sfdisk", "--json", disk]))["partitiontable"]
    except FedlearnError:
        return []
    sector = int(listed.get("sectorsize", _SECTOR))
    return [
        Partition(int(each["start"]) * sector, each["type"] in _FAT)
        for each in listed.get("partitions", ())
    ]


def write(image: Image, disk: Path, boot: Mapping[str, Path], data: Mapping[str, Path]) -> None:
    """Make `disk` for a device: `boot` are files for fedlearn/, `data` for its data folder."""
    tools.call(["cp", "--sparse=always", "--reflink=auto", image.disk, disk])
    found = partitions(disk)
    if not found:
        place = {f"/etc/fedlearn/{name}": path for name, path in boot.items()}
        place |= {f"/var/lib/fedlearn/data/{name}": path for name, path in data.items()}
        _into_ext4(disk, 0, place)
        return
    with disk.open("r+b") as stream:
        stream.truncate(disk.stat().st_size + ROOM_MB * 1_000_000 // _SECTOR * _SECTOR)
    fat = next((each for each in found if each.fat), None)
    if fat is None:
        raise FedlearnError(f"{image.name} has no boot partition to put the configuration on")
    _into_fat(disk, fat.offset_bytes, boot)
    place = {f"/fedlearn/data/{name}": path for name, path in data.items()}
    _into_ext4(disk, found[-1].offset_bytes, place)


def _into_fat(disk: Path, offset_bytes: int, files: Mapping[str, Path]) -> None:
    where = f"{disk}@@{offset_bytes}"
    tools.call(["mmd", "-i", where, "-D", "s", "::/fedlearn"])
    for name, path in files.items():
        tools.call(["mcopy", "-i", where, "-D", "o", path, f"::/fedlearn/{name}"])


def _into_ext4(disk: Path, offset_bytes: int, files: Mapping[str, Path]) -> None:
    commands: list[str] = []
    for name, path in files.items():
        parents = [str(each) for each in reversed(Path(name).parents) if str(each) != "/"]
        commands += [f"mkdir {each}" for each in parents if f"mkdir {each}" not in commands]
        commands += [f"rm {name}", f'write "{path.absolute()}" {name}']
    script = "\n".join(commands) + "\n"
    tools.call(["debugfs", "-w", "-f", "-", f"{disk}?offset={offset_bytes}"], text=script)
    for name, path in files.items():
        shown = tools.call(["debugfs", "-R", f"stat {name}", f"{disk}?offset={offset_bytes}"])
        if f"Size: {path.stat().st_size}\n" not in shown:
            raise FedlearnError(f"{name} could not be written to {disk.name}")
