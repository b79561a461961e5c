# SPDX-License-Identifier: Apache-2.0
"""Invariant: whatever the bytes are, and however they are cut, the samples are the same."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.collect.lines import MAX_LINE_BYTES, LineDecoder
from fedlearn.collect.sample import Counts, Item, Sample

NOISE = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet="0123456789.,-+eE \t\r\nxnaif#;_", max_size=200).map(str.encode),
)
CUTS = st.lists(st.integers(0, 400), max_size=10)


def decoded(
    *pieces: bytes, whole: bool = True, labelled: bool = False
) -> tuple[list[Item], Counts]:
    counts = Counts()
    decoder = LineDecoder(2, counts, labelled=labelled, classes=("rest", "walk"), whole=whole)
    items = [item for piece in pieces for item in decoder.feed(piece)]
    return items + decoder.end(), counts


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(each for each in cuts if each < len(data))})
    return [data[a:b] for a, b in pairwise(places)]


@given(NOISE, CUTS)
def test_pieces_make_no_difference(data: bytes, cuts: list[int]) -> None:
    together, counts = decoded(data)
    apart, counts_apart = decoded(*cut(data, cuts))
    assert together == apart
    assert asdict(counts) == asdict(counts_apart)
    for item in together:
        assert item is None or (len(item.values) == 2 and all(abs(v) < 1e309 for v in item.values))


@given(NOISE.filter(lambda each: b"\n" not in each and len(each) < 200))
def test_garbage_costs_its_own_line(noise: bytes) -> None:
    items, counts = decoded(b"1,2\n" + noise + b"\n3,4\n")
    assert items[0] == Sample((1.0, 2.0))
    assert items[-1] == Sample((3.0, 4.0))
    assert counts.garbage + counts.samples >= 2


@pytest.mark.parametrize(
    "line",
    ["1,2", " 1 , 2 ", "1;2", "1\t2", "1 2", "+1.0,2e0", "1,2\r", "1., .2e1", "# remark\n1,2"],
)
def test_what_microcontrollers_send(line: str) -> None:
    assert decoded(line.encode() + b"\n")[0] == [Sample((1.0, 2.0))]


@pytest.mark.parametrize(
    "line",
    [
        *("1", "1,2,3", "1,", ",1,2", "a,b", "nan,1", "1,inf", "1e999,2", "1_0,2", "0x1,2"),
        *("1,2,", "--1,2", "1 2 3", "\u0661,2", "1,\x002"),
    ],
)
def test_what_is_no_sample(line: str) -> None:
    items, counts = decoded(line.encode() + b"\n5,6\n")
    assert items == [None, Sample((5.0, 6.0))]
    assert (counts.garbage, counts.samples) == (1, 1)


def test_a_port_is_opened_in_the_middle_of_a_line() -> None:
    items, counts = decoded(b".5,2\n3,4\n", whole=False)
    assert items == [Sample((3.0, 4.0))]
    assert counts.halves == 1
    # Control: that half line looks like a whole one.
    assert len(decoded(b".5,2\n3,4\n")[0]) == 2


def test_labels() -> None:
    text = b"1,2,walk\n1,2,0\n1,2,-\n1,2,run\n1,2,7\n1,2\n"
    items, counts = decoded(text, labelled=True)
    values = (1.0, 2.0)
    wanted = [Sample(values, 1), Sample(values, 0), Sample(values), None, None, None]
    assert items == wanted
    assert counts.garbage == 3


def test_a_flood_without_lines_takes_no_memory() -> None:
    counts = Counts()
    decoder = LineDecoder(2, counts, whole=True)
    for _ in range(1000):
        decoder.feed(b"x" * 4096)
        assert len(decoder._rest) <= MAX_LINE_BYTES
    assert counts.overlong == 1
    assert decoder.feed(b"x\n1,2\n") == [Sample((1.0, 2.0))]
    assert counts.garbage_bytes == 1000 * 4096 + 1
