# SPDX-License-Identifier: Apache-2.0
"""Only deterministic CBOR passes; examples by hand, many from RFC 8949's appendix A."""

from __future__ import annotations

import tracemalloc

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import ProtocolError
from fedlearn.wire import strict_cbor

MAX_BYTES = 1 << 20


def load(body: bytes) -> object:
    return strict_cbor.loads(body, max_bytes=MAX_BYTES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("00", 0),
        ("17", 23),
        ("1818", 24),
        ("1903e8", 1000),
        ("1bffffffffffffffff", 2**64 - 1),
        ("20", -1),
        ("3903e7", -1000),
        ("f90000", 0.0),
        ("f93c00", 1.0),
        ("fb3ff199999999999a", 1.1),
        ("fa47c35000", 100000.0),
        ("fb7e37e43c8800759c", 1e300),
        ("f97c00", float("inf")),
        ("f4", False),
        ("f5", True),
        ("f6", None),
        ("40", b""),
        ("4401020304", b"\1\2\3\4"),
        ("62c3bc", "ü"),
        ("80", []),
        ("8301820203820405", [1, [2, 3], [4, 5]]),
        ("a0", {}),
        ("a26161016162820203", {"a": 1, "b": [2, 3]}),
        ("d8484102", cbor2.CBORTag(72, b"\2")),
    ],
)
def test_what_passes(text: str, value: object) -> None:
    assert load(bytes.fromhex(text)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "truncated"),
        ("18", "truncated"),
        ("1903", "truncated"),
        ("4401", "truncated"),
        ("8201", "truncated"),
        ("a16161", "truncated"),
        ("5b7fffffffffffffff", "truncated"),
        ("9bffffffffffffffff", "truncated"),
        ("bbffffffffffffffff", "truncated"),
        ("9a7fffffff01", "truncated"),
        ("0000", "after the end"),
        ("1817", "more bytes than it needs"),
        ("190017", "more bytes than it needs"),
        ("1b0000000000000001", "more bytes than it needs"),
        ("580101", "more bytes than it needs"),
        ("fa3f800000", "more bytes than it needs"),
        ("fb3ff0000000000000", "more bytes than it needs"),
        ("fb7ff0000000000000", "more bytes than it needs"),
        ("1c", "reserved"),
        ("5f42010243030405ff", "indefinite"),
        ("7f61616161ff", "indefinite"),
        ("9fff", "indefinite"),
        ("bfff", "indefinite"),
        ("ff", "indefinite"),
        ("f7", "simple value 23"),
        ("f0", "simple value 16"),
        ("f818", "simple value 24"),
        ("61ff", "UTF-8"),
        ("63eda080", "UTF-8"),  # a surrogate
        ("62c080", "UTF-8"),  # NUL in two bytes
        ("a10102", "keys must be texts"),
        ("a1f600", "keys must be texts"),
        ("a1800000", "keys must be texts"),
        ("a2616101616102", "twice the same key"),
        ("a2616201616102", "out of order"),
        ("a262616101616102", "out of order"),
        ("c074323031332d30332d32315432303a30343a30305a", "tag 0"),
        ("c249010000000000000000", "tag 2"),
        ("d81c80", "tag 28"),
        ("d81d00", "tag 29"),
        ("d9010000", "tag 256"),
        ("d8486161", "needs a byte string"),
        ("d848d8484100", "needs a byte string"),
        ("d84d00", "needs a byte string"),
        ("d848", "truncated"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason) as caught:
        load(bytes.fromhex(text))
    assert caught.value.status == 400


@pytest.mark.parametrize("head", ["81", "a16161"])
def test_depth(head: str) -> None:
    deep = strict_cbor.MAX_DEPTH
    assert load(bytes.fromhex(head * deep + "00"))
    with pytest.raises(ProtocolError, match="nested deeper"):
        load(bytes.fromhex(head * (deep + 1) + "00"))
    with pytest.raises(ProtocolError, match="nested deeper"):
        load(bytes.fromhex(head * 100_000 + "00"))


def test_number_of_items() -> None:
    most = strict_cbor.MAX_ITEMS - 1  # and the array itself
    assert load(cbor2.dumps([0] * most)) == [0] * most
    with pytest.raises(ProtocolError, match="more than"):
        load(cbor2.dumps([0] * (most + 1)))


def test_a_lie_about_a_length_costs_no_memory() -> None:
    lies = [bytes([major << 5 | 27]) + (1 << 40).to_bytes(8, "big") for major in (2, 3, 4, 5)]
    tracemalloc.start()
    try:
        for lie in lies:
            with pytest.raises(ProtocolError):
                load(lie)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), st.none()))
def test_the_keys_that_dumps_writes_are_in_the_order_of_rfc_8949(value: dict[str, None]) -> None:
    """Text keys only: sorting by length first (cbor2, RFC 7049) and by bytes (RFC 8949) agree."""
    body = strict_cbor.dumps(value)
    assert load(body) == value
    assert list(cbor2.loads(body)) == sorted(value, key=cbor2.dumps)


def test_the_control_of_that_order() -> None:
    """With integers among the keys they differ, which is why the protocol has none."""
    keys: list[object] = [100, "", -1]
    assert list(cbor2.loads(strict_cbor.dumps(dict.fromkeys(keys)))) != sorted(
        keys, key=cbor2.dumps
    )
