# SPDX-License-Identifier: Apache-2.0
"""Deltas come back to the bit, are small, and a stream that lies is refused in bounded memory."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedlearn.errors import ProtocolError
from fedlearn.model import Model
from fedlearn.wire import codec
from fedlearn.wire.delta import (
    Encoding,
    apply_difference,
    decode_delta,
    encode_delta,
    encode_difference,
)
from fedlearn.wire.messages import EncodedTensor, Update
from fedlearn.wire.packing import pack
from tests.client.wire.deltas import entropy_bytes, model_delta, weight_delta
from tests.client.wire.examples import DIGEST, METRICS

GREATEST = 2**31 - 1
PACKED = (Encoding.CODES, Encoding.PLANES)

sparse = st.one_of(st.just(0), st.sampled_from([1, -1]), st.integers(-255, 255))
weights = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=12), elements=sparse
)
biases = hnp.arrays(np.int32, st.integers(0, 100), elements=st.integers(-GREATEST, GREATEST))
grids = hnp.arrays(
    np.int32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.one_of(sparse, st.integers(-GREATEST, GREATEST)),
)


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def read_stream(stream: bytes, size: int, encoding: Encoding) -> list[int]:
    """Read CODES or PLANES as the module's text describes it: value by value, without NumPy."""
    data = zlib.decompress(stream, -15)
    columns, width, at = int.from_bytes(data[:4], "little"), data[4], 5
    rows = size // columns

    def bits(count: int) -> list[int]:
        nonlocal at
        start, at = at, at + (count + 7) // 8
        return [data[start + k // 8] >> (7 - k % 8) & 1 for k in range(count)]

    def planes(count: int) -> list[int]:
        nonlocal at
        start, at = at, at + count * width
        zigzag = [
            sum(data[start + plane * count + k] << 8 * plane for plane in range(width))
            for k in range(count)
        ]
        return [z // 2 if z % 2 == 0 else -(z + 1) // 2 for z in zigzag]

    live_rows = [row for row, bit in enumerate(bits(rows)) if bit]
    live_columns = [column for column, bit in enumerate(bits(columns)) if bit]
    signs = [-1 if bit else 1 for bit in bits(len(live_rows))]
    count = len(live_rows) * len(live_columns)
    if encoding == Encoding.PLANES:
        values = planes(count)
    else:
        start, at = at, at + (count + 3) // 4
        codes = [data[start + k // 4] >> 2 * (k % 4) & 3 for k in range(count)]
        escaped = iter(planes(codes.count(3)))
        values = [(0, 1, -1)[code] if code < 3 else next(escaped) for code in codes]
    assert at == len(data)
    result = [0] * size
    for k, value in enumerate(values):
        column, row = divmod(k, len(live_rows))
        result[live_rows[row] * columns + live_columns[column]] = signs[row] * value
    return result


@settings(max_examples=200, deadline=None)
@given(weights)
def test_weights_round_trip(values: NDArray[np.int32]) -> None:
    encoding, data = encode_delta(values)
    decoded = decode_delta(encoding, data, values.size, dtype="int8")
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, values.ravel())
    assert encode_delta(values) == (encoding, data)
    assert len(data) <= 2 * values.size


@settings(max_examples=100, deadline=None)
@given(biases)
def test_biases_round_trip(values: NDArray[np.int32]) -> None:
    encoding, data = encode_delta(values.astype(np.int64))
    np.testing.assert_array_equal(decode_delta(encoding, data, values.size, dtype="int32"), values)
    assert len(data) <= 4 * values.size


@pytest.mark.parametrize("encoding", PACKED)
@settings(max_examples=100, deadline=None)
@given(grid=grids)
def test_a_packed_stream_is_what_its_description_says(
    encoding: Encoding, grid: NDArray[np.int32]
) -> None:
    stream = pack(grid, encoding)
    assert read_stream(stream, grid.size, encoding) == grid.ravel().tolist()
    decoded = decode_delta(encoding, stream, grid.size, dtype="int32")
    np.testing.assert_array_equal(decoded, grid.ravel())


@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        (np.zeros((3, 4)), Encoding.ZERO),
        (np.zeros(0), Encoding.ZERO),
        (np.arange(-9, 9), Encoding.INT8),
        (np.arange(-9, 9) * 100, Encoding.INT16),
        (np.arange(-9, 9) * 100_000_000, Encoding.INT32),
        (np.tile([0, 1, -1, 0, 2], (40, 40)), Encoding.CODES),
        (np.tile([90, 91, 92, 93, 94, 95, 96, 97], (40, 40)), Encoding.PLANES),
    ],
)
def test_the_smallest_encoding_is_taken(values: NDArray[np.int64], encoding: Encoding) -> None:
    assert encode_delta(values.astype(np.int64))[0] == encoding


def test_values_outside_int32_are_our_own_fault() -> None:
    for value in (2**31, -(2**31)):
        with pytest.raises(ValueError, match="int32"):
            encode_delta(np.array([value], np.int64))


@pytest.mark.parametrize("seed", range(4))
def test_an_update_of_52_thousand_parameters_takes_less_than_7_kb(seed: int) -> None:
    deltas = model_delta(np.random.default_rng(seed))
    tensors = tuple(EncodedTensor(i, *encode_delta(each)) for i, each in enumerate(deltas))
    update = Update("digits", 7, DIGEST, "board-1", 400, METRICS, tensors)
    assert sum(each.size for each in deltas) == 52_138
    assert len(codec.encode(update)) < 7_000


def test_rows_and_columns_take_it_below_the_entropy() -> None:
    rng = np.random.default_rng(5)
    values = weight_delta(rng, 64, 784)
    assert 0.15 < (values != 0).mean() < 0.21
    assert 0.92 < (np.abs(values) <= 1).mean() < 0.96
    assert len(encode_delta(values)[1]) < 0.8 * entropy_bytes(values)
    # Control: the same values shuffled have no structure; then nothing can be below the entropy.
    shuffled = rng.permuted(values.ravel()).reshape(values.shape)
    assert 1.0 < len(encode_delta(shuffled)[1]) / entropy_bytes(values) < 1.05


def test_the_difference_of_two_models(digits_file: bytes, digits: Model) -> None:
    rng = np.random.default_rng(6)
    changes = {}
    for index, shape in ((5, (64, 784)), (3, (10, 64))):
        weight = digits.array(index).astype(int) + weight_delta(rng, *shape)
        changes[index] = weight.clip(-127, 127).astype(np.int8)
    target = digits.patched(changes)
    encoding, data = encode_difference(digits_file, target)
    assert apply_difference(digits_file, encoding, data) == target
    assert len(data) < len(target) / 6


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_two_files_of_one_length_have_a_difference(data: st.DataObject) -> None:
    base = data.draw(st.binary(max_size=200))
    target = data.draw(st.binary(min_size=len(base), max_size=len(base)))
    assert apply_difference(base, *encode_difference(base, target)) == target


def test_files_of_two_lengths_have_none() -> None:
    with pytest.raises(ValueError, match="no difference"):
        encode_difference(b"12", b"123")


def head(columns: int = 4, width: int = 1) -> bytes:
    return columns.to_bytes(4, "little") + bytes([width])


# All for 8 values as 2 rows of 4, the first row and column live, not negated.
ONE = head() + b"\x80\x80\x00"


def test_the_control_of_lying_streams() -> None:
    for encoding, body in ((Encoding.PLANES, b"\x03"), (Encoding.CODES, b"\x02")):
        values = decode_delta(encoding, raw_deflate(ONE + body), 8, dtype="int8")
        assert values.tolist() == [-2 if encoding == Encoding.PLANES else -1] + 7 * [0]


@pytest.mark.parametrize(
    ("encoding", "data", "size"),
    [
        (Encoding.ZERO, b"\0", 8),
        (Encoding.ZERO, b"\0", 0),
        (Encoding.INT8, bytes(7), 8),
        (Encoding.INT8, bytes(9), 8),
        (Encoding.INT8, b"\0", 0),
        (Encoding.INT16, bytes(8), 8),
        (Encoding.INT32, bytes(31), 8),
        (6, b"", 8),
        (255, b"", 8),
        (2**63 - 1, b"", 8),
        *((encoding, b"", 8) for encoding in PACKED),
        *((encoding, b"\xff\xff", 8) for encoding in PACKED),
        *((encoding, raw_deflate(b""), 8) for encoding in PACKED),
        (Encoding.PLANES, raw_deflate(ONE), 8),
        (Encoding.PLANES, raw_deflate(ONE + b"\3\0"), 8),
        (Encoding.PLANES, raw_deflate(ONE + b"\3") + b"\0", 8),
        (Encoding.PLANES, raw_deflate(ONE + b"\3")[:-1], 8),
        (Encoding.PLANES, zlib.compress(ONE + b"\3"), 8),
        (Encoding.PLANES, raw_deflate(ONE + b"\3"), 9),
        (Encoding.PLANES, raw_deflate(ONE + b"\3"), 16_000),
        (Encoding.PLANES, raw_deflate(head(width=0) + b"\x80\x80\0"), 8),
        (Encoding.PLANES, raw_deflate(head(width=3) + b"\x80\x80\0\3\0\0"), 8),
        (Encoding.PLANES, raw_deflate(head(columns=0) + b"\x80\x80\0\3"), 8),
        (Encoding.PLANES, raw_deflate(head(columns=2**32 - 1) + b"\x80\x80\0\3"), 8),
        (Encoding.PLANES, raw_deflate(head(columns=2**32 - 1)), 0),
        (Encoding.CODES, raw_deflate(ONE + b"\x03"), 8),  # an escape without its value
        (Encoding.CODES, raw_deflate(ONE + b"\x01\x00"), 8),  # a value without its escape
    ],
)
def test_a_lying_stream_is_refused(encoding: int, data: bytes, size: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_delta(encoding, data, size, dtype="int8")
    assert caught.value.status == 422


@pytest.mark.parametrize("make", [encode_delta, lambda v: (Encoding.PLANES, pack(v, PACKED[1]))])
def test_the_range_of_a_difference(
    make: Callable[[NDArray[np.int32]], tuple[Encoding, bytes]],
) -> None:
    for sign in (1, -1):
        encoding, data = make(np.array([[sign * 255, 0]], np.int32))
        assert decode_delta(encoding, data, 2, dtype="int8")[0] == sign * 255
        encoding, data = make(np.array([[sign * 256, 0]], np.int32))
        assert decode_delta(encoding, data, 2, dtype="int32")[0] == sign * 256
        with pytest.raises(ProtocolError, match="beyond"):
            decode_delta(encoding, data, 2, dtype="int8")
    least = (-(2**31)).to_bytes(4, "little", signed=True)
    with pytest.raises(ProtocolError, match="beyond"):
        decode_delta(Encoding.INT32, least, 1, dtype="int32")


@pytest.mark.parametrize("encoding", PACKED)
def test_a_deflate_bomb_costs_no_memory(encoding: Encoding) -> None:
    bomb = raw_deflate(ONE + bytes(64 << 20))
    assert len(bomb) < 70_000
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode_delta(encoding, bomb, 1_000, dtype="int8")
        assert tracemalloc.get_traced_memory()[1] < 200_000
        tracemalloc.reset_peak()
        zlib.decompress(bomb, -15)  # control: the meter sees it
        assert tracemalloc.get_traced_memory()[1] > 60_000_000
    finally:
        tracemalloc.stop()
