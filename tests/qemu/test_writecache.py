# SPDX-License-Identifier: Apache-2.0
"""What a power cut leaves of a disk, on logs that are written here by the format's description."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.errors import FedlearnError
from fedlearn_qemu.writecache import Loss, WriteCache, entries

FLUSH, DISCARD = 1, 4
BLOCK = 4096


def head(magic: int = 0x6A736677736872, sector: int = 512) -> bytes:
    return struct.pack("<QQQI", magic, 1, 0, sector).ljust(512, b"\0")


def entry(sector: int, data: bytes = b"", flags: int = 0, sectors: int | None = None) -> bytes:
    count = len(data) // 512 if sectors is None else sectors
    return struct.pack("<QQQQ", sector, count, flags, 0).ljust(512, b"\0") + data


@pytest.fixture
def cache(tmp_path: Path) -> WriteCache:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"-" * 64 * BLOCK)
    return WriteCache(disk)


def blocks(cache: WriteCache) -> list[bytes]:
    data = cache.disk.read_bytes()
    found = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    assert all(len(set(each)) == 1 for each in found), "a block is torn"
    return [each[:1] for each in found]


def test_what_was_flushed_stays_and_what_was_not_may_go(cache: WriteCache) -> None:
    cache.log.write_bytes(
        head()
        + entry(0, b"a" * 16 * BLOCK)
        + entry(0, flags=FLUSH)
        + entry(16 * 8, b"b" * 40 * BLOCK)
    )
    seen: set[bytes] = set()
    for seed in range(5):
        cache.disk.write_bytes(b"-" * 64 * BLOCK)
        loss = cache.cut(Random(seed))
        assert (loss.written, loss.unflushed) == (56, 40)
        found = blocks(cache)
        assert found[:16] == [b"a"] * 16
        assert found[56:] == [b"-"] * 8
        assert found[16:56].count(b"-") == loss.lost
        assert 5 < loss.lost < 35
        seen.add(b"".join(found))
    assert len(seen) == 5, "other seeds lose other blocks"


def test_later_writes_lie_over_earlier_ones(cache: WriteCache) -> None:
    cache.log.write_bytes(
        head() + entry(0, b"a" * BLOCK) + entry(0, b"b" * BLOCK) + entry(0, flags=FLUSH)
    )
    assert cache.cut(Random(0)).lost == 0
    assert blocks(cache)[0] == b"b"


def test_a_discard_is_followed_by_no_data(cache: WriteCache) -> None:
    cache.log.write_bytes(
        head()
        + entry(8, flags=DISCARD, sectors=80)
        + entry(0, b"a" * BLOCK)
        + entry(0, flags=FLUSH)
    )
    cache.cut(Random(0))
    assert blocks(cache)[:3] == [b"a", b"-", b"-"]


def test_a_flush_covers_nothing_that_comes_after_it(cache: WriteCache) -> None:
    cache.log.write_bytes(head() + entry(0, flags=FLUSH) + entry(0, b"a" * 20 * BLOCK))
    loss = cache.cut(Random(0))
    assert loss.unflushed == 20
    assert loss.lost > 0


def test_without_a_flush_nothing_is_safe(cache: WriteCache) -> None:
    cache.log.write_bytes(head() + entry(0, b"a" * 20 * BLOCK))
    loss = cache.cut(Random(0))
    assert loss.unflushed == 20
    assert loss.lost > 0


def test_what_passed_an_unfinished_write_counts(cache: WriteCache) -> None:
    """QEMU has kept the unfinished one's place: an entry and a block of zeros."""
    place = bytes(len(entry(0, b"x" * BLOCK)))
    later = entry(8, b"b" * BLOCK) + entry(0, flags=FLUSH)
    cache.log.write_bytes(head() + entry(0, b"a" * BLOCK) + place + later)
    assert cache.cut(Random(0)) == Loss(2, 0, 0)
    assert blocks(cache)[:2] == [b"a", b"b"]


def test_an_empty_log_changes_nothing(cache: WriteCache) -> None:
    cache.log.write_bytes(b"")
    assert cache.cut(Random(0)).written == 0


def test_another_file_is_no_log(cache: WriteCache) -> None:
    cache.log.write_bytes(head(magic=7))
    with pytest.raises(FedlearnError, match="no log of writes"):
        list(entries(cache.log))


@given(st.data())
def test_a_log_that_ends_anywhere_is_read_up_to_there(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = head() + entry(0, b"a" * BLOCK) + entry(0, flags=FLUSH) + entry(8, b"b" * 2 * BLOCK)
    path = tmp_path_factory.mktemp("log") / "x.log"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    found = list(entries(path))
    assert [each.size for each in found] == [BLOCK, 0, 2 * BLOCK][: len(found)]
