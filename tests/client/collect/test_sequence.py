# SPDX-License-Identifier: Apache-2.0
"""Invariant: no sample comes out that was not sent, and every one that arrived whole comes out."""

from __future__ import annotations

import struct
import zlib

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.collect.sample import Counts, Item, Sample
from fedlearn.collect.sequence import SequenceDecoder, encode

NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.floats(width=32, allow_nan=False, allow_infinity=False)
)
SAMPLES = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12)
NOISE = st.binary(max_size=60)


def decoded(*pieces: bytes, labelled: bool = False) -> tuple[list[Item], Counts]:
    counts = Counts()
    decoder = SequenceDecoder(2, counts, labelled=labelled)
    return [item for piece in pieces for item in decoder.feed(piece)], counts


def stream(samples: list[tuple[float, float]], first: int = 0) -> list[bytes]:
    return [encode(first + number, values) for number, values in enumerate(samples)]


@given(SAMPLES, st.integers(1, 30), st.integers(0, 255))
def test_round_trip_in_pieces(samples: list[tuple[float, float]], size: int, first: int) -> None:
    data = b"".join(stream(samples, first))
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    items, counts = decoded(*pieces)
    assert items == [Sample((float(a), float(b))) for a, b in samples]
    assert (counts.garbage, counts.lost) == (0, 0)


@given(SAMPLES)
def test_an_independent_reader_agrees(samples: list[tuple[float, float]]) -> None:
    """RFC 8742: the items one after the other; the checksum is over all before it."""
    for number, (item, values) in enumerate(zip(stream(samples), samples, strict=True)):
        read = cbor2.loads(item)
        assert read[:3] == [number, *values]
        tail = cbor2.dumps(read[3])
        assert item.endswith(tail)
        assert zlib.crc32(item[: -len(tail)]) == read[3]


@given(SAMPLES, st.data())
def test_noise_between_items_costs_none(
    samples: list[tuple[float, float]], data: st.DataObject
) -> None:
    pieces = [part for item in stream(samples) for part in (data.draw(NOISE), item)]
    # A few bytes that could be a head may wait for more, so the last one gets some.
    items, _ = decoded(b"".join(pieces) + b"\xff" * 80)
    assert [each for each in items if each] == [Sample((float(a), float(b))) for a, b in samples]


@given(SAMPLES, st.data())
def test_a_flipped_bit_makes_no_sample(
    samples: list[tuple[float, float]], data: st.DataObject
) -> None:
    sent = bytearray(b"".join(stream(samples)))
    at = data.draw(st.integers(0, 8 * len(sent) - 1))
    sent[at // 8] ^= 1 << at % 8
    items, counts = decoded(bytes(sent) + b"\xff" * 80)
    wanted = [Sample((float(a), float(b))) for a, b in samples]
    came = [each for each in items if each]
    assert len(came) == len(samples) - 1
    assert all(each in wanted for each in came)
    assert counts.garbage >= 1


def test_without_its_checksum_it_would() -> None:
    """Control: what the test above relies on is the checksum."""
    item = encode(0, (1.0, 2.0))
    wrong = item[:4] + bytes([item[4] ^ 0x40]) + item[5:]
    assert decoded(wrong)[0] == [None] or decoded(wrong)[0] == []
    body = wrong[:-5]
    assert decoded(body + b"\x1a" + struct.pack(">I", zlib.crc32(body)))[0][0] is not None


@given(st.binary(max_size=2000), st.integers(1, 100))
def test_no_bytes_do_harm(data: bytes, size: int) -> None:
    counts = Counts()
    decoder = SequenceDecoder(2, counts)
    for at in range(0, len(data), size):
        decoder.feed(data[at : at + size])
        assert len(decoder._rest) < 100


def test_lost_samples_are_counted_and_leave_a_gap() -> None:
    sent = stream([(float(n), 0.5) for n in range(300)])
    items, counts = decoded(b"".join([*sent[:250], *sent[253:]]))
    assert counts.lost == 3
    assert items[250] is None
    assert len(items) == 298
    assert counts.samples == 297


def test_labels() -> None:
    sent = encode(0, (1, 2), 6, labelled=True) + encode(1, (1, 2), None, labelled=True)
    assert decoded(sent, labelled=True)[0] == [Sample((1.0, 2.0), 6), Sample((1.0, 2.0))]
    assert decoded(encode(0, (1, 2)) * 3 + b"\xff" * 20, labelled=True)[1].samples == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_sample(value: float) -> None:
    assert decoded(encode(0, (value, 1.0)))[0] == [None]


def test_floats_of_all_widths() -> None:
    for body in (b"\xf9\x3c\x00", b"\xfa\x3f\x80\x00\x00", b"\xfb\x3f\xf0" + bytes(6)):
        item = b"\x84\x00" + body + b"\x20"
        item += b"\x1a" + zlib.crc32(item).to_bytes(4, "big")
        assert decoded(item)[0] == [Sample((1.0, -1.0))]


def test_many_channels_have_a_head_of_two_bytes() -> None:
    counts = Counts()
    decoder = SequenceDecoder(40, counts)
    item = encode(0, list(range(40)))
    items = [made for byte in b"\x98" + item + item for made in decoder.feed(bytes([byte]))]
    assert [len(each.values) for each in items if each] == [40, 40]
