# SPDX-License-Identifier: Apache-2.0
"""Deterministic CBOR (RFC 8949, section 4.2.1), and nothing else.

`loads` walks the raw bytes before cbor2 sees them. cbor2 alone allocates what a length declares,
recurses as deep as the bytes say, lets the last of two equal keys win, and differs from version to
version in what it raises; after the walk none of that can happen. The walk demands the
deterministic form, because then one message has one string of bytes (the aggregator tells a
repeated update from a conflicting one by its bytes) and because ascending keys cannot repeat.
"""

from __future__ import annotations

import struct

import cbor2

from fedlearn.errors import ProtocolError

# The deepest message (a task's tensors' shapes) nests 4 deep; the rest is room for later versions.
MAX_DEPTH = 8
# A task of 3,000 trainable tensors, far above any model that fits a board, has fewer. It bounds
# the walk to tens of milliseconds and the decoded objects to a few MB.
MAX_ITEMS = 65_536
# Typed arrays of RFC 8746: int8, little-endian int16, little-endian int32.
TYPED_ARRAY_TAGS = frozenset({72, 77, 78})

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_CONSTANTS = frozenset({20, 21, 22})  # false, true, null
_FLOATS = frozenset({25, 26, 27})
_FLOAT = {2: ">e", 4: ">f", 8: ">d"}  # by width in bytes
_DETERMINISTIC = "encode deterministically, RFC 8949 section 4.2.1"
# The least argument that needs this many bytes: whatever is smaller has a shorter form.
_LEAST = {1: 24, 2: 1 << 8, 4: 1 << 16, 8: 1 << 32}


def dumps(value: object) -> bytes:
    """Encode in the deterministic form.

    cbor2's canonical mode sorts keys by length and then by bytes (RFC 7049, section 3.9), where
    RFC 8949 sorts by the encoded bytes alone. For text keys, the only ones here, the two agree:
    the encoded head grows with the length.
    """
    return cbor2.dumps(value, canonical=True)


def loads(body: bytes, *, max_bytes: int) -> object:
    """Decode one item that fills the whole body; only `ProtocolError` escapes.

    413 for a body above `max_bytes`, 400 for everything else.
    """
    if len(body) > max_bytes:
        raise ProtocolError(
            f"body of {len(body)} bytes where at most {max_bytes} are allowed", status=413
        )
    walk = _Walk(body)
    walk.item(0)
    if walk.at != len(body):
        raise ProtocolError(f"{len(body) - walk.at} bytes after the end of the message")
    try:
        return cbor2.loads(body)
    except Exception as error:  # the walk leaves nothing to raise in the versions that we know
        raise ProtocolError("not CBOR that this version can read") from error


class _Walk:
    """One pass over the heads of a body; strings are skipped, not copied."""

    __slots__ = ("at", "body", "items")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.at = 0
        self.items = 0

    def item(self, depth: int) -> None:
        """Check the item at `at` and step behind it."""
        major, info, argument = self.head()
        if major in (_BYTES, _TEXT):
            self.string(major, argument)
        elif major in (_ARRAY, _MAP):
            if depth == MAX_DEPTH:
                raise ProtocolError(f"nested deeper than {MAX_DEPTH}")
            # Every item takes a byte at least: a count that cannot be is refused before the loop.
            self.demand(argument if major == _ARRAY else 2 * argument)
            if major == _ARRAY:
                for _ in range(argument):
                    self.item(depth + 1)
            else:
                self.entries(argument, depth + 1)
        elif major == _TAG:
            if argument not in TYPED_ARRAY_TAGS:
                raise ProtocolError(f"tag {argument} is no part of the protocol")
            major, _, length = self.head()
            if major != _BYTES:
                raise ProtocolError(f"tag {argument} needs a byte string")
            self.string(major, length)
        elif major == _SIMPLE and info not in _CONSTANTS and info not in _FLOATS:
            raise ProtocolError(f"simple value {argument} is no part of the protocol")

    def entries(self, count: int, depth: int) -> None:
        """Check the entries of a map: text keys, each greater than the one before."""
        previous = b""
        for _ in range(count):
            start = self.at
            major, _, length = self.head()
            if major != _TEXT:
                raise ProtocolError("a map's keys must be texts")
            self.string(major, length)
            key = self.body[start : self.at]
            if key <= previous:
                wrong = "twice the same key" if key == previous else "keys out of order"
                raise ProtocolError(f"{wrong} in a map", hint=_DETERMINISTIC)
            previous = key
            self.item(depth)

    def head(self) -> tuple[int, int, int]:
        """Read an item's major type, additional information and argument."""
        self.items += 1
        if self.items > MAX_ITEMS:
            raise ProtocolError(f"more than {MAX_ITEMS} items")
        self.demand(1)
        initial = self.body[self.at]
        self.at += 1
        major, info = initial >> 5, initial & 31
        if info < 24:
            return major, info, info
        if info > 27:
            raise ProtocolError(
                "an indefinite length" if info == 31 else "a reserved head", hint=_DETERMINISTIC
            )
        width = 1 << (info - 24)
        self.demand(width)
        raw = self.body[self.at : self.at + width]
        self.at += width
        argument = int.from_bytes(raw, "big")
        if argument < _LEAST[width] if major != _SIMPLE else _is_long_float(raw):
            raise ProtocolError("a number in more bytes than it needs", hint=_DETERMINISTIC)
        return major, info, argument

    def string(self, major: int, length: int) -> None:
        """Step over the bytes of a string; a text's must be UTF-8."""
        self.demand(length)
        end = self.at + length
        if major == _TEXT:
            try:
                self.body[self.at : end].decode()
            except UnicodeDecodeError as error:
                raise ProtocolError("a text that is not UTF-8") from error
        self.at = end

    def demand(self, count: int) -> None:
        """Refuse what needs more bytes than there are left."""
        left = len(self.body) - self.at
        if count > left:
            raise ProtocolError(f"truncated: {count} bytes needed, {left} left")


def _is_long_float(raw: bytes) -> bool:
    """Whether a float has the same value in half the width; a NaN, refused later, never has."""
    if len(raw) <= 2:
        return False
    (value,) = struct.unpack(_FLOAT[len(raw)], raw)
    shorter = _FLOAT[len(raw) // 2]
    try:
        (same,) = struct.unpack(shorter, struct.pack(shorter, value))
    except OverflowError:
        return False
    return bool(same == value)
