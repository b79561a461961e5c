# SPDX-License-Identifier: Apache-2.0
"""A disk with the partitions of a .wks file, made as wic makes it, without root or loop devices."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from fedlearn.errors import FedlearnError
from fedlearn_qemu.layer.wks import Disk
from fedlearn_qemu.tools import call

# wic gives a root so much more than its files need.
_ROOM = 1.3
_INODE_BYTES = 1024
_TYPES = {"vfat": "c", "ext4": "83"}
_KIB = 1024
_SECTOR = 512


def write(wks: Disk, root: Path, target: Path) -> None:
    """Write the disk; its partition "/" holds the files of `root`."""
    if wks.bootloader.ptable != "msdos":
        raise FedlearnError("the stand-in image has MBR partitions alone")
    table, at_kib = ["label: dos"], 0
    made = []
    for each in wks.partitions:
        align = each.align or 1
        # The first sector is the table's.
        at_kib = -(-max(at_kib, 1) // align) * align
        size_kib = each.fixed_size or _size_kib(each, root, align)
        made.append((each, at_kib, size_kib))
        start, size = at_kib * _KIB // _SECTOR, size_kib * _KIB // _SECTOR
        active = ", bootable" if each.active else ""
        table.append(f"start={start}, size={size}, type={_TYPES[each.fstype]}{active}")
        at_kib += size_kib
    target.unlink(missing_ok=True)
    with target.open("wb") as disk:
        disk.truncate(at_kib * _KIB)
    call(["sfdisk", "--quiet", target], text="\n".join(table) + "\n")
    for each, start_kib, size_kib in made:
        _make(each, start_kib, size_kib, root, target)


def _size_kib(each: argparse.Namespace, root: Path, align: int) -> int:
    if each.mountpoint != "/":
        raise FedlearnError(f"partition {each.label} has no size")
    files = [path.lstat() for path in root.rglob("*")]
    needed = sum(-(-one.st_size // 4096) * 4 for one in files)
    needed = int((needed + len(files) * _INODE_BYTES / _KIB) * _ROOM)
    return -(-needed // align) * align


def _make(each: argparse.Namespace, start_kib: int, size_kib: int, root: Path, disk: Path) -> None:
    label = each.label or ""
    if each.fstype == "vfat":
        options = ["-n", label, f"--offset={start_kib * _KIB // _SECTOR}"]
        call(["mkfs.vfat", *options, disk, str(size_kib)])
        return
    command = ["mke2fs", "-q", "-t", each.fstype, "-L", label]
    command += [f"-Eoffset={start_kib * _KIB}", *shlex.split(_with_offset(each, start_kib))]
    if each.mountpoint == "/":
        command += ["-d", str(root)]
    call([*command, disk, f"{size_kib}k"])


def _with_offset(each: argparse.Namespace, start_kib: int) -> str:
    """mke2fs knows the last -E alone: where the .wks has one, the offset goes into it."""
    return (each.mkfs_extraopts or "").replace("-E ", f"-E offset={start_kib * _KIB},")
