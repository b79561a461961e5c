# SPDX-License-Identifier: Apache-2.0
"""CBOR sequences (RFC 8742) with a checksum: one array a sample.

    [counter, value, ..., value, crc]          or [counter, value, ..., value, label, crc]

`counter` goes up by one a sample (modulo 256 is enough) and tells how many were lost. The values
are integers or floats of any width, `label` is a class number or null. `crc` is the CRC-32 of IEEE
802.3 (zlib's) over the bytes of the item before it, from the array's head on.

A sequence has nothing that tells where an item begins. So after a fault the decoder tries each byte
that could be the head; the checksum decides, and a chance of 2^-32 is left to a false one.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence

from fedlearn.collect.sample import Counts, Item, Sample

_FLOATS = {25: ">e", 26: ">f", 27: ">d"}  # by additional information: half, single, double
_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}
_UNSIGNED, _NEGATIVE, _ARRAY, _SIMPLE = 0, 1, 4, 7
_NULL = 0xF6
_COUNTERS = 256
# As the lines': a class number has six digits at most.
_MAX_LABEL = 999_999


class _Incomplete(Exception):  # noqa: N818 - no error: the rest is on its way
    pass


class _Wrong(Exception):  # noqa: N818
    pass


class SequenceDecoder:
    """Makes samples of bytes, however they are cut into pieces."""

    def __init__(self, channels: int, counts: Counts, *, labelled: bool = False) -> None:
        self._channels, self._counts, self._labelled = channels, counts, labelled
        self._head = _array_head(2 + channels + labelled)
        self._rest = b""
        self._last: int | None = None  # counter
        self._lost_track = False

    def feed(self, data: bytes) -> list[Item]:
        """The samples that these bytes complete; None where something was lost."""
        self._counts.bytes += len(data)
        items: list[Item] = []
        rest, at = self._rest + data, 0
        while True:
            start = rest.find(self._head, at)
            # A head of two bytes may be cut in the middle.
            skipped_to = start if start >= 0 else max(at, len(rest) - len(self._head) + 1)
            if skipped_to > at:
                self._skip(skipped_to - at, items)
                at = skipped_to
            if start < 0:
                break
            try:
                at = self._item(rest, at, items)
            except _Incomplete:
                break
            except _Wrong:
                self._skip(1, items)
                at += 1
        self._rest = rest[at:]
        return items

    def end(self) -> list[Item]:
        """Nothing: an item says itself where it ends."""
        self._counts.garbage_bytes += len(self._rest)
        self._rest = b""
        return []

    def _skip(self, count: int, items: list[Item]) -> None:
        self._counts.garbage_bytes += count
        if not self._lost_track:
            self._lost_track = True
            self._counts.garbage += 1
            items.append(None)

    def _item(self, data: bytes, start: int, items: list[Item]) -> int:
        """Take one item; returns where it ends."""
        reader = _Reader(data, start + len(self._head))
        counter = reader.unsigned()
        values = tuple(reader.number() for _ in range(self._channels))
        label = reader.label() if self._labelled else None
        end = reader.at
        if reader.unsigned() != zlib.crc32(data[start:end]):
            raise _Wrong
        missing = 0 if self._last is None else (counter - self._last - 1) % _COUNTERS
        self._last = counter
        if missing:
            self._counts.lost += missing
            if not self._lost_track:
                items.append(None)
        self._lost_track = False
        if not all(map(math.isfinite, values)):
            self._counts.garbage += 1
            items.append(None)
            return reader.at
        self._counts.samples += 1
        items.append(Sample(values, label))
        return reader.at


def encode(
    counter: int, values: Sequence[float], label: int | None = None, *, labelled: bool = False
) -> bytes:
    """One item as a sender makes it; with `labelled` a label, which may be None, is in it.

    Floats are single precision, integers the shortest there is.
    """
    item = bytearray(_array_head(2 + len(values) + labelled))
    item += _encoded_integer(counter % _COUNTERS)
    for value in values:
        if isinstance(value, int):
            item += _encoded_integer(value)
        else:
            item += b"\xfa" + struct.pack(">f", value)
    if labelled:
        item += bytes([_NULL]) if label is None else _encoded_integer(label)
    return bytes(item + _encoded_integer(zlib.crc32(item)))


def _encoded_integer(value: int) -> bytes:
    major, argument = (_UNSIGNED, value) if value >= 0 else (_NEGATIVE, -1 - value)
    if argument < 24:
        return bytes([major << 5 | argument])
    for info, width in _WIDTHS.items():
        if argument < 1 << 8 * width:
            return bytes([major << 5 | info]) + argument.to_bytes(width, "big")
    raise ValueError(f"{value} needs more than 64 bits")


def _array_head(count: int) -> bytes:
    return bytes([_ARRAY << 5 | count]) if count < 24 else bytes([_ARRAY << 5 | 24, count])


class _Reader:
    """Reads numbers. Raises _Incomplete at the end of the bytes, _Wrong for anything else."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def unsigned(self) -> int:
        major, info = self._initial()
        if major != _UNSIGNED:
            raise _Wrong
        return self._argument(info)

    def label(self) -> int | None:
        if self.at < len(self.data) and self.data[self.at] == _NULL:
            self.at += 1
            return None
        label = self.unsigned()
        if label > _MAX_LABEL:
            raise _Wrong
        return label

    def number(self) -> float:
        major, info = self._initial()
        if major == _UNSIGNED:
            return float(self._argument(info))
        if major == _NEGATIVE:
            return float(-1 - self._argument(info))
        if major != _SIMPLE or info not in _FLOATS:
            raise _Wrong
        (value,) = struct.unpack(_FLOATS[info], self._bytes(_WIDTHS[info]))
        return float(value)

    def _initial(self) -> tuple[int, int]:
        (initial,) = self._bytes(1)
        return initial >> 5, initial & 31

    def _argument(self, info: int) -> int:
        if info < 24:
            return info
        if info not in _WIDTHS:
            raise _Wrong
        return int.from_bytes(self._bytes(_WIDTHS[info]), "big")

    def _bytes(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise _Incomplete
        found = self.data[self.at : end]
        self.at = end
        return found
