# SPDX-License-Identifier: Apache-2.0
"""A grid of small integers, mostly zeros, as one short stream: the encodings CODES and PLANES.

Four things are true of a weight delta (rows: outputs, columns: inputs) after a round of SGD:

1. Dead outputs (ReLU) and dead inputs (the border of an image) leave whole rows and columns zero.
   Two bitmaps take them out.
2. Activations behind a ReLU are never negative, so the gradients of one output tend to have one
   sign, that of its error. Every row is multiplied by the sign of its sum, which makes +1 far
   likelier than -1 in the whole grid.
3. Nearly all that is left is 0, +1 or -1: two bits each, and the rest apart.
4. The activity of inputs varies more than that of outputs, so a value resembles its neighbours in
   the column more than those in the row: the columns follow each other.

Each part then gets a Huffman code of its own. Over twenty federated rounds of MNIST, the deltas of
a 64 x 784 layer came out 19 % (median) below the entropy of their values, which knows nothing of
rows and columns, and 13 % below deflated 2-bit codes. Measured and dropped: Golomb-Rice gaps, bit
planes and five base-3 digits a byte (all larger), and rows sorted by density (2 % smaller, but a
permutation more).

The stream is raw deflate (RFC 1951) of these parts, integers little-endian:

- 4 bytes: the row length; 1 byte: the width of a value (1, 2 or 4 bytes);
- one bit a row, then one bit a column: has it a non-zero value? Only live ones go on;
- one bit a live row: is it negated?
- CODES: 2 bits a live value, column by column, low bits first: 0, +1, -1, escape; then the escaped
  values as PLANES has them;
- PLANES: zigzag values (0, -1, 1, -2 ... as 0, 1, 2, 3 ...), all low bytes, then all second bytes,
  and so on.

Every part fills whole bytes; bitmaps begin at the high bit.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ProtocolError
from fedlearn.wire.messages import Encoding

Int32s = NDArray[np.int32]
Bits = NDArray[np.bool_]

_WIDTHS = (1, 2, 4)
_CODES_PER_BYTE = 4
_ESCAPE = 3
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
# The four values of a byte; what is escaped is filled in later.
_MISSING = 2
_BYTE_VALUES = np.array([0, 1, -1, _MISSING], np.int32)[np.arange(256)[:, None] >> _SHIFTS & 3]
# (level, strategy): Huffman alone is best for packed codes, which repeat by chance only; matches
# pay where nearly all is zero. Higher levels take five times as long for 1 %.
_DEFLATE = ((1, zlib.Z_HUFFMAN_ONLY), (6, zlib.Z_FILTERED))


def pack(grid: Int32s, encoding: Encoding) -> bytes:
    """Pack int32 (rows, columns), free of -2**31, as CODES or PLANES."""
    rows, columns = grid.any(axis=1), grid.any(axis=0)
    live = grid[rows][:, columns]
    negated = live.sum(axis=1, dtype=np.int64) < 0
    live[negated] *= -1
    values = live.ravel(order="F")
    codes = b""
    if encoding == Encoding.CODES:
        codes, values = _to_codes(values)
    width, planes = _to_planes(values)
    head = grid.shape[1].to_bytes(4, "little") + bytes([width])
    bitmaps = b"".join(np.packbits(bits).tobytes() for bits in (rows, columns, negated))
    parts = [head + bitmaps, codes, planes]
    return min((_deflate(parts, *how) for how in _DEFLATE), key=len)


def unpack(data: bytes, size: int, encoding: Encoding) -> Int32s:
    """Unpack an untrusted stream to int32 (size,).

    Raises `ProtocolError` (422) and nothing else. Memory is bounded by `size`, whatever the data.
    """
    # At most 4 bytes and a code a value; bits for as many rows and columns as values; the head.
    stream = _Stream(_inflate(data, 5 * size + 16))
    columns = int.from_bytes(stream.take(4), "little")
    width = stream.take(1)[0]
    if width not in _WIDTHS or not columns or size % columns:
        raise refused("has a head that does not fit the tensor")
    rows_live = stream.take_bits(size // columns)
    columns_live = stream.take_bits(columns)
    shape = int(rows_live.sum()), int(columns_live.sum())
    negated = stream.take_bits(shape[0])
    from_bytes = _from_codes if encoding == Encoding.CODES else _from_planes
    live = from_bytes(stream, shape[0] * shape[1], width).reshape(shape, order="F")
    stream.end()
    live[negated] *= -1
    grid = np.zeros((size // columns, columns), np.int32)
    grid[np.ix_(rows_live, columns_live)] = live
    return grid.reshape(size)


def refused(what: str) -> ProtocolError:
    """Build the error for an encoded tensor that cannot be decoded."""
    return ProtocolError(f"an encoded tensor {what}", status=422)


class _Stream:
    """The parts of an inflated stream, taken one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) < count:
            raise refused("ends too early")
        self._at += count
        return part

    def take_bits(self, count: int) -> Bits:
        packed = np.frombuffer(self.take(-(-count // 8)), np.uint8)
        return np.unpackbits(packed, count=count).astype(bool)

    def end(self) -> None:
        if self._at != len(self._data):
            raise refused("has bytes behind its end")


def _to_codes(values: Int32s) -> tuple[bytes, Int32s]:
    """Split into packed 2-bit codes and the values that need an escape."""
    codes = np.full(values.size, _ESCAPE, np.uint8)
    for code, value in ((0, 0), (1, 1), (2, -1)):
        codes[values == value] = code
    padded = np.pad(codes, (0, -codes.size % _CODES_PER_BYTE)).reshape(-1, _CODES_PER_BYTE)
    packed = np.bitwise_or.reduce(padded << _SHIFTS, axis=1)
    return packed.tobytes(), values[codes == _ESCAPE]


def _from_codes(stream: _Stream, count: int, width: int) -> Int32s:
    packed = np.frombuffer(stream.take(-(-count // _CODES_PER_BYTE)), np.uint8)
    values = _BYTE_VALUES[packed].ravel()[:count]
    escaped = np.flatnonzero(values == _MISSING)
    values[escaped] = _from_planes(stream, escaped.size, width)
    return values


def _to_planes(values: Int32s) -> tuple[int, bytes]:
    """Zigzag the values and lay them out by significance; returns their width too."""
    zigzag = ((values << 1) ^ (values >> 31)).view(np.uint32)
    largest = int(zigzag.max(initial=0))
    width = next(width for width in _WIDTHS if largest < 1 << 8 * width)
    return width, zigzag.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T.tobytes()


def _from_planes(stream: _Stream, count: int, width: int) -> Int32s:
    planes = np.frombuffer(stream.take(count * width), np.uint8).reshape(width, count)
    zigzag = np.ascontiguousarray(planes.T).view(f"<u{width}").ravel().astype(np.uint32)
    values: Int32s = ((zigzag >> 1) ^ -(zigzag & 1)).view(np.int32)
    return values


def _deflate(parts: list[bytes], level: int, strategy: int) -> bytes:
    """Compress with a Huffman code of its own for each part that is not empty."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, strategy=strategy)
    *first, last = filter(None, parts)
    flushed = [stream.compress(part) + stream.flush(zlib.Z_PARTIAL_FLUSH) for part in first]
    return b"".join((*flushed, stream.compress(last), stream.flush()))


def _inflate(data: bytes, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = stream.decompress(data, max_bytes)
    except zlib.error as error:
        raise refused("is not a deflate stream") from error
    if not stream.eof or stream.unused_data:
        raise refused("is longer or shorter than its deflate stream")
    return plain
