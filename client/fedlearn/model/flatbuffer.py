# SPDX-License-Identifier: Apache-2.0
"""A bounds-checked reader of FlatBuffers tables.

A FlatBuffers table starts with a signed offset back to its vtable; the vtable holds the size of
itself and of the table, then one 16-bit offset for each field ("slot"), zero where the field is
absent. Vectors and strings are a 32-bit length and then the elements; fields that refer to them
hold a relative offset. See https://flatbuffers.dev/internals/.

The bytes come from a peer or a disk, so no offset in them is believed: each access is checked
against the buffer, and whatever does not fit is one `ModelError`.
"""

from __future__ import annotations

import struct
from typing import Any

from fedlearn.errors import ModelError

# No vector of a file that a board can hold is longer.
MOST_BYTES = 1 << 31


def corrupt(what: str) -> ModelError:
    """The error for bytes that are no sound file."""
    return ModelError(
        f"the .tflite file is truncated or corrupt: {what}", hint="fetch or convert it again"
    )


def read(buffer: bytes, offset: int, layout: str) -> Any:
    """Read one little-endian scalar of struct format `layout` at `offset`."""
    size = struct.calcsize("<" + layout)
    if not 0 <= offset <= len(buffer) - size:
        raise corrupt(f"an offset of {offset} in {len(buffer)} bytes")
    return struct.unpack_from("<" + layout, buffer, offset)[0]


class Table:
    """One table in a buffer; fields are addressed by their slot number in the schema."""

    __slots__ = ("_buffer", "_fields", "_position", "_vtable")

    def __init__(self, buffer: bytes, position: int) -> None:
        self._buffer = buffer
        self._position = position
        self._vtable = position - read(buffer, position, "i")
        self._fields = (read(buffer, self._vtable, "H") - 4) // 2

    @classmethod
    def root(cls, buffer: bytes) -> Table:
        """The table that the file's first word points to."""
        return cls(buffer, read(buffer, 0, "I"))

    def _slot(self, slot: int) -> int:
        """Absolute offset of a field's value, 0 when the field is absent."""
        if slot >= self._fields:
            return 0
        offset: int = read(self._buffer, self._vtable + 4 + 2 * slot, "H")
        return self._position + offset if offset else 0

    def _target(self, slot: int) -> int:
        offset = self._slot(slot)
        return offset + int(read(self._buffer, offset, "I")) if offset else 0

    def scalar(self, slot: int, layout: str, default: Any = 0) -> Any:
        """A number of struct format `layout`, or `default` when the field is absent."""
        offset = self._slot(slot)
        return read(self._buffer, offset, layout) if offset else default

    def scalar_offset(self, slot: int) -> int:
        """Where a scalar field lies in the buffer (to patch it), 0 when it is absent."""
        return self._slot(slot)

    def table(self, slot: int) -> Table | None:
        """A sub-table, None when it is absent."""
        target = self._target(slot)
        return Table(self._buffer, target) if target else None

    def vector(self, slot: int, item_bytes: int, most: int = MOST_BYTES) -> tuple[int, int]:
        """Offset of the first element and number of elements of a vector; (0, 0) if absent.

        Many fields may point to one long vector, so that a small file unfolds to a large one:
        `most` is what the caller has room for.
        """
        target = self._target(slot)
        if not target:
            return 0, 0
        count: int = read(self._buffer, target, "I")
        if count > most or count * item_bytes > len(self._buffer) - target - 4:
            raise corrupt(f"a vector of {count} elements")
        return target + 4, count

    def scalars(self, slot: int, layout: str, most: int) -> tuple[Any, ...]:
        """A vector of at most `most` numbers of struct format `layout`."""
        start, count = self.vector(slot, struct.calcsize("<" + layout), most)
        return struct.unpack_from(f"<{count}{layout}", self._buffer, start) if count else ()

    def tables(self, slot: int, most: int) -> list[Table]:
        """A vector of at most `most` sub-tables."""
        start, count = self.vector(slot, 4, most)
        places = range(start, start + 4 * count, 4)
        return [Table(self._buffer, at + int(read(self._buffer, at, "I"))) for at in places]

    def string(self, slot: int, most: int) -> str:
        """The first `most` bytes of a string; bytes that are no UTF-8 are replaced."""
        start, count = self.vector(slot, 1)
        return self._buffer[start : start + min(count, most)].decode("utf-8", "replace")
