# SPDX-License-Identifier: Apache-2.0
"""The bytes of the ring: segments of records that are only ever appended to.

    segment  "FLRING1\\n", u32 length of the JSON, JSON (number, grid), u32 CRC-32; then records
    record   i64 start_ms, i64 end_ms, i32 label or -1, int8 (window, channels), u32 CRC-32

All integers are little-endian. All records of a segment have the same length, so a damaged one
costs itself alone. The CRC of a record goes on from that of its segment's head: what a disk left of
another file is no record here. This module does no I/O.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from fedlearn.collect.grid import Grid
from fedlearn.collect.windows import Window

MAGIC = b"FLRING1\n"
NO_LABEL = -1
_U32 = struct.Struct("<I")
_HEAD = struct.Struct("<qqi")
# A grid of 64 channels with long names takes some thousand bytes.
_MAX_JSON = 16 * 1024
_NAME = re.compile(r"(\d{10})\.(\d{1,6}|none)\.seg")


def record_bytes(grid: Grid) -> int:
    """Bytes of a record of this grid."""
    return _HEAD.size + grid.window_bytes + _U32.size


def name_of(number: int, label: int | None) -> str:
    """The file name of a segment, whose order is the order of their beginnings."""
    return f"{number:010}.{'none' if label is None else label}.seg"


def parse_name(name: str) -> tuple[int, int | None] | None:
    """Number and label of a segment's file name; None for another file's."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return int(found[1]), None if found[2] == "none" else int(found[2])


@dataclass(frozen=True, slots=True)
class Head:
    """How a segment begins: its number, what its windows mean, and where its records start."""

    number: int
    grid: Grid
    data: bytes

    @classmethod
    def make(cls, number: int, grid: Grid) -> Head:
        """The head of a new segment."""
        values = {"number": number, "grid": json.loads(grid.to_json())}
        text = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
        return cls(
            number,
            grid,
            MAGIC + _U32.pack(len(text)) + text + _U32.pack(zlib.crc32(text)),
        )

    @classmethod
    def parse(cls, data: bytes) -> Head | None:
        """Read the head of a segment's bytes; None when it is torn or damaged."""
        at = len(MAGIC) + _U32.size
        if len(data) < at or not data.startswith(MAGIC):
            return None
        (length,) = _U32.unpack_from(data, len(MAGIC))
        end = at + length + _U32.size
        if length > _MAX_JSON or len(data) < end:
            return None
        text = data[at : at + length]
        if _U32.unpack_from(data, at + length) != (zlib.crc32(text),):
            return None
        try:
            values = json.loads(text)
            grid = Grid.from_json(json.dumps(values["grid"]).encode())
            return cls(int(values["number"]), grid, data[:end])
        except (ValueError, TypeError, LookupError):
            return None

    @property
    def _seed(self) -> int:
        # Without its own CRC at the end, over which the CRC would come out the same for all heads.
        return zlib.crc32(self.data[: -_U32.size])

    def record(self, window: Window) -> bytes:
        """A window as a record of this segment."""
        label = NO_LABEL if window.label is None else window.label
        body = _HEAD.pack(window.start_ms, window.end_ms, label) + window.data
        return body + _U32.pack(zlib.crc32(body, self._seed))

    def records(self, data: bytes) -> Iterator[tuple[int, Window]]:
        """The whole records of a segment's bytes, each with where it ends; damaged ones are not."""
        size, seed = record_bytes(self.grid), self._seed
        for start in range(len(self.data), len(data) - size + 1, size):
            body = data[start : start + size - _U32.size]
            if _U32.unpack_from(data, start + len(body)) != (zlib.crc32(body, seed),):
                continue
            start_ms, end_ms, label = _HEAD.unpack_from(body)
            window = Window(
                body[_HEAD.size :], None if label == NO_LABEL else label, start_ms, end_ms
            )
            yield start + size, window
