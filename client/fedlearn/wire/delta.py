# SPDX-License-Identifier: Apache-2.0
"""Integer deltas in few bytes: which encoding is the smallest, and what may be in one.

The encodings, by the numbers of `Encoding`; integers are little-endian:

- ZERO: no data, all values are zero.
- INT8, INT16, INT32: the values one after the other; typed arrays of RFC 8746 on the wire.
- CODES, PLANES: the streams of `fedlearn.wire.packing`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.wire.messages import Encoding
from fedlearn.wire.packing import pack, refused, unpack

__all__ = ["Encoding", "apply_difference", "decode_delta", "encode_delta", "encode_difference"]

Integers = NDArray[np.integer[Any]]
Int32s = NDArray[np.int32]

# A difference of two int8 values, and of two int32 biases. The latter could be twice as large; no
# step of training comes near, and int32 keeps the sums of a thousand devices within int64.
_GREATEST = {"int8": 255, "int32": 2**31 - 1}
_DENSE: dict[Encoding, np.dtype[Any]] = {
    Encoding.INT8: np.dtype("<i1"),
    Encoding.INT16: np.dtype("<i2"),
    Encoding.INT32: np.dtype("<i4"),
}
_PACKED = (Encoding.CODES, Encoding.PLANES)


def encode_delta(values: Integers) -> tuple[Encoding, bytes]:
    """Encode integers within +-(2**31 - 1), of any shape, in the smallest of the encodings.

    The first axis of a weight should be its outputs, as in TFLite's files: it makes the result
    smaller, and decoding does not need it. Raises ValueError for greater values.
    """
    if not values.any():
        return Encoding.ZERO, b""
    least, greatest = int(values.min()), int(values.max())
    if max(-least, greatest) > _GREATEST["int32"]:
        raise ValueError("a delta does not fit int32")
    dense = next(
        encoding
        for encoding, dtype in _DENSE.items()
        if np.iinfo(dtype).min <= least and greatest <= np.iinfo(dtype).max
    )
    grid = _as_grid(values).astype(np.int32)
    candidates = [
        (dense, values.astype(_DENSE[dense]).tobytes()),
        *((encoding, pack(grid, encoding)) for encoding in _PACKED),
    ]
    return min(candidates, key=lambda candidate: len(candidate[1]))


def decode_delta(encoding: int, data: bytes, size: int, *, dtype: str) -> Int32s:
    """Decode `size` differences of a tensor of `dtype`, "int8" or "int32": int32 (size,).

    Raises `ProtocolError` (422) and nothing else. Memory is bounded by `size`, whatever the data.
    """
    if encoding in _PACKED:
        values = unpack(data, size, Encoding(encoding))
    elif encoding == Encoding.ZERO or encoding in _DENSE:
        values = _from_dense(data, size, _DENSE.get(Encoding(encoding)))
    else:
        raise refused("has an encoding that this version does not know")
    limit = _GREATEST[dtype]
    if size and (values.min() < -limit or values.max() > limit):
        raise refused(f"has a value beyond +-{limit}")
    return values


def encode_difference(base: bytes, target: bytes) -> tuple[Encoding, bytes]:
    """Encode the bytes' difference modulo 256 of two files of the same length."""
    if len(base) != len(target):
        raise ValueError(f"files of {len(base)} and {len(target)} bytes have no difference")
    difference = np.frombuffer(target, np.uint8) - np.frombuffer(base, np.uint8)
    return encode_delta(difference.view(np.int8))


def apply_difference(base: bytes, encoding: int, data: bytes) -> bytes:
    """Rebuild the target from the base and an encoded difference.

    Raises `ProtocolError` and nothing else; whether it is the right target, only its digest tells.
    """
    difference = decode_delta(encoding, data, len(base), dtype="int8")
    return (np.frombuffer(base, np.uint8) + difference).astype(np.uint8).tobytes()


def _from_dense(data: bytes, size: int, kind: np.dtype[Any] | None) -> Int32s:
    if len(data) != (size * kind.itemsize if kind else 0):
        raise refused(f"has {len(data)} bytes for {size} values")
    return np.frombuffer(data, kind).astype(np.int32) if kind else np.zeros(size, np.int32)


def _as_grid(values: Integers) -> Integers:
    """Make it two-dimensional: outputs x inputs where the shape tells, else one row."""
    if values.ndim < 2:
        return values.reshape(1, -1)
    if values.shape[0] == 1:  # DEPTHWISE_CONV_2D: (1, height, width, channels)
        return values.reshape(-1, values.shape[-1])
    return values.reshape(values.shape[0], -1)
