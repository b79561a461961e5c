# SPDX-License-Identifier: Apache-2.0
"""Proof that every offset in a `.tflite` stays in the file, before anyone follows one.

The TFLite runtime follows them in C++: tflite-runtime without any check, also those of parts that
fedlearn does not read, such as metadata and signatures. So all that the schema knows is verified
here as FlatBuffers' own verifier does it: bounds, alignment, terminated strings, required fields.
"""

from __future__ import annotations

from typing import NamedTuple

from fedlearn.errors import ModelError
from fedlearn.model.flatbuffer import corrupt, read

# Fields of each table by slot. A digit is a scalar of so many bytes, "text" a string, a name a
# table, brackets a vector, a final "!" a field that the runtime takes for granted, "-" what is
# refused: sparse and variant tensors, StableHLO, external buffers, and fields that are no more.
# "options" and "details" are unions: the slot before them holds the type. The order is that of
# `tensorflow/lite/schema/schema.fbs`.
_TABLES = {
    "Model": "4 [OperatorCode]! [SubGraph]! text [Buffer]! [4] [Metadata] [SignatureDef] - -",
    "OperatorCode": "1 text 4 4",
    "SubGraph": "[Tensor]! [4]! [4]! [Operator]! text 4",
    "Tensor": "[4] 1 4 text Quantization 1 - [4] 1 - 4",
    "Quantization": "[4] [4] [4] [8] 1 details 4",
    "CustomQuantization": "[1]",
    "BlockwiseQuantization": "4 4 4 [4]",
    "Operator": "4 [4] [4] 1 options [1] 1 [1] [4] 8 8 1 - 4",
    "Buffer": "[1] 8 8",
    "Metadata": "text! 4",
    "SignatureDef": "[TensorMap] [TensorMap] text! - 4",
    "TensorMap": "text! 4",
}
_DETAILS = {1: "CustomQuantization", 2: "BlockwiseQuantization"}

# Fields of the options by the union's type, where there are any: scalars, and vectors of them.
LAST_OPTIONS = 126
_OPTIONS = {
    1: "1 4 4 1 4 4 1", 2: "1 4 4 4 1 4 4", 3: "4 [4] [4]", 4: "1", 5: "1 4 4 4 4 1", 6: "4 1 1",
    7: "1 1", 8: "1 1 1 1 1 [4]", 9: "4", 10: "4 1", 11: "1 1", 12: "1", 13: "4 4 4 4",
    14: "1 4 4 1 1", 15: "4 4 1 1", 16: "4", 17: "[4]", 18: "4 4 1", 19: "4", 20: "1", 21: "1",
    23: "4 4", 27: "1", 28: "1 1", 29: "1", 30: "[4]", 31: "1 1 1", 32: "4 4 4 4 4 1", 35: "4",
    37: "1 1", 40: "1", 49: "1 4 4 1 1", 50: "1", 55: "1", 57: "1", 58: "4 4 4 1", 59: "4 4",
    61: "4", 64: "4 4", 69: "1 4 4 1 1 1", 70: "1 1 1 1", 71: "1 4 4 1 1 1", 74: "1 1", 75: "4",
    77: "1", 79: "4", 80: "1", 87: "4 4", 92: "4 4", 93: "4 4", 94: "4", 101: "1 1 1", 102: "1 1",
    103: "4", 106: "1 4 4 4 1 4 4 4", 107: "4 1 1", 111: "text text", 114: "8 8", 115: "[4]",
    116: "1",
}  # fmt: skip

# Vectors may share tables, and tables vectors; so many tables are looked at, then it is a bomb.
MAX_TABLES = 1 << 18


class _Field(NamedTuple):
    """A scalar of `size` bytes, or an offset to a `table`, a text or a vector of either."""

    size: int
    table: str
    is_vector: bool
    is_required: bool

    @property
    def bytes_here(self) -> int:
        """What the field takes in its table."""
        return 4 if self.is_vector else self.size


def _fields(layout: str) -> tuple[_Field | None, ...]:
    fields: list[_Field | None] = []
    for word in layout.split():
        kind = word.rstrip("!")
        name = kind.strip("[]")
        size, table = (int(name), "") if name.isdigit() else (4, name)
        fields.append(None if kind == "-" else _Field(size, table, kind != name, kind != word))
    return tuple(fields)


_LAYOUTS = {
    **{name: _fields(layout) for name, layout in _TABLES.items()},
    **{f"options {kind}": _fields(_OPTIONS.get(kind, "")) for kind in range(1, LAST_OPTIONS + 1)},
}


def verify(data: bytes) -> None:
    """Raise ModelError unless all tables, vectors and strings of the file lie within it."""
    verifier = _Verifier(data)
    verifier.follow(0, "Model")
    # No recursion: the schema bounds the depth of a file, and the list bounds the work.
    while verifier.pending:
        verifier.table(*verifier.pending.pop())


class _Verifier:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._seen: set[tuple[int, str]] = set()
        self._tables = 0
        self._text_bytes = 0
        self.pending: list[tuple[int, str]] = []

    def follow(self, at: int, name: str) -> None:
        """The table that the offset at `at` leads to is to be verified, too."""
        self._tables += 1
        if self._tables > MAX_TABLES:
            raise corrupt(f"more than {MAX_TABLES} tables")
        self.pending.append((self._target(at), name))

    def table(self, position: int, name: str) -> None:
        """Verify one table but for the tables that it refers to."""
        if self._is_known(position, name):
            return
        vtable = position - int(read(self._data, position, "i"))
        vtable_bytes = int(read(self._data, vtable, "H"))
        table_bytes = int(read(self._data, vtable + 2, "H"))
        if vtable_bytes < 4 or vtable_bytes % 2 or table_bytes < 4:
            raise corrupt(f"a table {name} of {table_bytes} bytes, with {vtable_bytes} of fields")
        self._within(vtable, vtable_bytes, 2)
        self._within(position, table_bytes, 4)
        kind = 0
        for slot, field in enumerate(_LAYOUTS[name]):
            has_slot = 4 + 2 * slot < vtable_bytes
            offset = int(read(self._data, vtable + 4 + 2 * slot, "H")) if has_slot else 0
            if field is None:
                if offset:
                    raise ModelError(f"field {slot} of a {name} of the file is not supported")
                continue
            if not offset and field.is_required:
                raise corrupt(f"a table {name} without field {slot}")
            if offset:
                if not 4 <= offset <= table_bytes - field.bytes_here:
                    raise corrupt(f"field {slot} outside of its table {name}")
                self._field(position + offset, field, kind)
            # The type of a union stands before it; absent, it is 0.
            kind = int(read(self._data, position + offset, "B")) if offset else 0

    def _field(self, at: int, field: _Field, kind: int) -> None:
        self._within(at, field.bytes_here, field.bytes_here)
        if field.is_vector:
            self._vector(self._target(at), field)
        elif field.table == "text":
            self._text(self._target(at))
        elif field.table == "options":
            if kind > LAST_OPTIONS:
                raise corrupt(f"operator options of the unknown type {kind}")
            if kind:
                self.follow(at, f"options {kind}")
        elif field.table == "details":
            if kind in _DETAILS:
                self.follow(at, _DETAILS[kind])
        elif field.table:
            self.follow(at, field.table)

    def _vector(self, position: int, field: _Field) -> None:
        if self._is_known(position, f"{field.size} {field.table}"):
            return
        count = int(read(self._data, position, "I"))
        self._within(position, 4, 4)
        self._within(position + 4, count * field.size, field.size)
        if field.table:
            for at in range(position + 4, position + 4 + 4 * count, 4):
                self.follow(at, field.table)

    def _text(self, position: int) -> None:
        if self._is_known(position, "text"):
            return
        count = int(read(self._data, position, "I"))
        self._within(position, 4 + count + 1, 4)
        end = position + 4 + count
        self._text_bytes += count
        if self._text_bytes > len(self._data):
            raise corrupt("texts that overlap")
        try:
            self._data[position + 4 : end].decode("utf-8")  # as the runtime's bindings do
        except UnicodeDecodeError as error:
            raise corrupt(f"a text that is no UTF-8 at {position}") from error
        if self._data[end]:
            raise corrupt(f"a text without its end at {position}")

    def _target(self, at: int) -> int:
        return at + int(read(self._data, at, "I"))

    def _is_known(self, position: int, what: str) -> bool:
        known = (position, what) in self._seen
        self._seen.add((position, what))
        return known

    def _within(self, start: int, size: int, alignment: int) -> None:
        if start % alignment or not 0 <= start <= len(self._data) - size:
            raise corrupt(f"{size} bytes at {start} of {len(self._data)}")
