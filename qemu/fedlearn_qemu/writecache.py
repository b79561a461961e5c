# SPDX-License-Identifier: Apache-2.0
"""A disk with a write cache that is gone with the power, as cards and SSDs have.

QEMU's driver blklogwrites writes down all that the guest writes, and when it flushes, in the format
of the kernel's dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst). After a
power cut the disk holds all that was written before the last flush, and of what came later any part
in any order: here each block of 4 KiB by the toss of a coin.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fedlearn.errors import FedlearnError
from fedlearn_qemu import tools

_SECTOR = 512
_BLOCK = 4096
_MAGIC = 0x6A736677736872
_FLUSH = 1
_DISCARD = 4
_SUPERBLOCK = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")


@dataclass(frozen=True, slots=True)
class Loss:
    """What a power cut did: blocks of 4 KiB that had been written, that no flush covered, lost."""

    written: int
    unflushed: int
    lost: int


@dataclass(frozen=True, slots=True)
class Write:
    """Some sectors of the disk, and where in the log their content is; no content: a flush."""

    sector: int
    start: int
    size: int


class WriteCache:
    """What is between a device and its disk, an image file, while it is on."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self._written = disk.with_suffix(".written")
        self.log = disk.with_suffix(".log")

    @property
    def drive(self) -> str:
        """QEMU's -drive."""
        return (
            f"driver=blklogwrites,file.driver=file,file.filename={self._written},"
            f"log.driver=file,log.filename={self.log},log-sector-size={_SECTOR},cache=writeback"
        )

    def switch_on(self) -> None:
        """Start from the disk as it is."""
        tools.call(["cp", "--sparse=always", "--reflink=auto", self.disk, self._written])
        self.log.write_bytes(b"")

    def cut(self, random: Random) -> Loss:
        """Bring the disk to what it holds after the power went away just now."""
        writes = list(entries(self.log))
        flushed = max((at for at, each in enumerate(writes) if not each.size), default=-1)
        written = lost = unflushed = 0
        with self.log.open("rb") as log, self.disk.open("r+b") as disk:
            for at, each in enumerate(writes):
                for start in range(0, each.size, _BLOCK):
                    written += 1
                    if at > flushed:
                        unflushed += 1
                        if random.random() < 0.5:
                            lost += 1
                            continue
                    log.seek(each.start + start)
                    disk.seek(each.sector * _SECTOR + start)
                    disk.write(log.read(min(_BLOCK, each.size - start)))
        return Loss(written, unflushed, lost)

    def forget(self) -> None:
        """Delete what only a device that is on needs."""
        self._written.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)


def entries(path: Path) -> Iterator[Write]:
    """The writes and flushes of a log, in order; what QEMU had not finished is left out."""
    size = path.stat().st_size
    with path.open("rb") as log:
        head = log.read(_SECTOR)
        if len(head) < _SECTOR:
            return
        magic, _version, _count, sector = _SUPERBLOCK.unpack_from(head)
        if magic != _MAGIC or sector != _SECTOR:
            raise FedlearnError(f"{path.name} is no log of writes")
        # Not the superblock's count: QEMU writes that only now and then.
        at = _SECTOR
        while at + _SECTOR <= size:
            log.seek(at)
            start, sectors, flags, _data = _ENTRY.unpack(log.read(_ENTRY.size))
            at += _SECTOR
            if not sectors and not flags:
                # QEMU keeps the place of a write that it has not finished; others may have passed.
                continue
            length = 0 if flags & (_FLUSH | _DISCARD) else sectors * _SECTOR
            if at + length > size:
                return
            if length or flags & _FLUSH:
                yield Write(start, at, length)
            at += length
