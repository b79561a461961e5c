# SPDX-License-Identifier: Apache-2.0
"""Invariant: after a power cut at any byte every window that was synced before it is there."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlearn.collect.ring import RingWriter, read_ring
from fedlearn.collect.segment import Head, record_bytes
from fedlearn.collect.settings import RingConfig
from fedlearn.collect.wear import Allowance
from fedlearn.errors import StorageError
from tests.client.collect.harness import GRID, window

AT_ONCE = RingConfig(size_kib=64, sync_s=0)
SELDOM = RingConfig(size_kib=64, sync_s=3600)


def write(path: Path, numbers: range, config: RingConfig = AT_ONCE) -> RingWriter:
    writer = RingWriter(path, GRID, config)
    for number in numbers:
        writer.add(window(number))
    writer.close()
    return writer


def numbers(path: Path) -> list[int]:
    return [each.start_ms // 1000 for each in read_ring(path)[1]]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, range(40))
    write(tmp_path, range(40, 50))
    grid, windows = read_ring(tmp_path)
    assert grid == GRID
    assert windows == [window(number) for number in range(50)]


def test_a_power_cut_at_every_byte(tmp_path: Path) -> None:
    """The file ends anywhere; then the writer starts again, and so does the reader."""
    write(tmp_path / "whole", range(5))
    (segment,) = (tmp_path / "whole").glob("*.seg")
    data = segment.read_bytes()
    head, size = len(Head.make(1, GRID).data), record_bytes(GRID)
    assert len(data) == head + 5 * size
    for length in range(len(data) + 1):
        path = tmp_path / "cut"
        path.mkdir()
        (path / segment.name).write_bytes(data[:length])
        left = list(range(max(0, length - head) // size))
        if length >= head:
            assert numbers(path) == left
        write(path, range(7, 9))
        assert numbers(path) == [*left, 7, 8], length
        shutil.rmtree(path)


def test_a_damaged_record_costs_itself_alone(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    (segment,) = tmp_path.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[-record_bytes(GRID) - 7] ^= 1
    segment.write_bytes(data)
    assert numbers(tmp_path) == [0, 1, 2, 4]
    write(tmp_path, range(5, 6))
    assert numbers(tmp_path) == [0, 1, 2, 4, 5]


def test_blocks_of_another_segment_are_no_records(tmp_path: Path) -> None:
    """A disk may leave what was there before; zeros and old records are told from new ones."""
    write(tmp_path, range(3))
    (segment,) = tmp_path.glob("*.seg")
    records = segment.read_bytes()[len(Head.make(1, GRID).data) :]
    other = Head.make(2, GRID)
    path = tmp_path / segment.name.replace("1", "2")
    path.write_bytes(other.data + records + bytes(len(records)))
    assert numbers(tmp_path) == [0, 1, 2]
    path.write_bytes(other.data + other.record(window(9)))
    assert numbers(tmp_path) == [0, 1, 2, 9]  # control


def test_the_oldest_goes_and_the_size_is_kept(tmp_path: Path) -> None:
    size = 64 * 1024
    writer = RingWriter(tmp_path, GRID, SELDOM)
    for number in range(6000):
        writer.add(window(number))
        if number % 100 == 99:
            writer.flush()
    writer.close()
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= size
    kept = numbers(tmp_path)
    assert kept == list(range(6000 - len(kept), 6000))
    assert len(kept) * record_bytes(GRID) > 0.7 * size
    assert writer.dropped_segments > 0


@pytest.mark.parametrize("balance", [True, False])
def test_a_rare_label_stays_where_that_is_asked_for(tmp_path: Path, balance: bool) -> None:
    writer = RingWriter(tmp_path, GRID, replace(SELDOM, balance=balance))
    for number in range(20):
        writer.add(window(number, 1))
    for number in range(6000):
        writer.add(window(number, 0))
    writer.close()
    labels = [each.label for each in read_ring(tmp_path)[1]]
    assert labels.count(1) == (20 if balance else 0)
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 64 * 1024


def test_windows_wait_for_the_next_sync(tmp_path: Path) -> None:
    now = 0.0
    syncs = 0

    def monotonic() -> float:
        return now

    writer = RingWriter(tmp_path, GRID, RingConfig(size_kib=4096, sync_s=30), monotonic)
    sync = os.fdatasync

    def counted(handle: int) -> None:
        nonlocal syncs
        syncs += 1
        sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", counted)
        for number in range(120):
            now = number / 2
            writer.add(window(number))
        assert syncs == 1
        assert len(numbers(tmp_path)) == 61
        now = 1000.0
        writer.tick()
    assert syncs == 2
    assert len(numbers(tmp_path)) == 120
    writer.close()


def test_a_full_disk_costs_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, range(200))
    before = {each.name for each in tmp_path.glob("*.seg")}
    assert len(before) > 3
    real, room = os.pwrite, 2

    def full(handle: int, data: bytes, offset: int) -> int:
        nonlocal room
        if room:
            room -= 1
            raise OSError(errno.ENOSPC, "full")
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    write(tmp_path, range(200, 201))
    monkeypatch.undo()
    kept = numbers(tmp_path)
    assert kept == list(range(kept[0], 201))
    assert kept[0] > 0
    assert len({each.name for each in tmp_path.glob("*.seg")} - before) <= 1


def test_a_disk_that_takes_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RingWriter(tmp_path, GRID, AT_ONCE)
    writer.add(window(1))

    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(StorageError):
        writer.add(window(2))
    monkeypatch.undo()
    writer.add(window(3))
    writer.close()
    assert numbers(tmp_path) == [1, 3]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    writer = RingWriter(tmp_path, GRID, AT_ONCE)
    with pytest.raises(StorageError, match="another process"):
        RingWriter(tmp_path, GRID, AT_ONCE)
    writer.close()
    RingWriter(tmp_path, GRID, AT_ONCE).close()


def test_another_grid_begins_anew_and_the_old_one_comes_back(tmp_path: Path) -> None:
    other = replace(GRID, step=0.25)
    write(tmp_path, range(3))
    writer = RingWriter(tmp_path, other, AT_ONCE)
    writer.add(window(5))
    writer.close()
    assert read_ring(tmp_path) == (other, [window(5)])
    write(tmp_path, range(6, 7))
    assert read_ring(tmp_path) == (GRID, [window(number) for number in (0, 1, 2, 6)])


def _fill(path: Path, count: int) -> None:
    writer = RingWriter(path, GRID, SELDOM)
    for number in range(count):
        writer.add(window(number))
        if number % 20 == 0:
            writer.flush()
    writer.close()


def test_a_snapshot_is_whole_while_the_writer_goes_on(tmp_path: Path) -> None:
    write(tmp_path, range(1))
    process = multiprocessing.get_context("spawn").Process(target=_fill, args=(tmp_path, 8000))
    process.start()
    looks = 0
    while process.is_alive():
        _, windows = read_ring(tmp_path)
        found = [each.start_ms // 1000 for each in windows]
        assert all(each == window(number) for each, number in zip(windows, found, strict=True))
        assert found[1:] == list(range(found[1], found[1] + len(found) - 1)) if found[1:] else True
        looks += 1
    process.join()
    assert looks > 3


def test_an_empty_ring(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_ring(tmp_path)


def test_the_wear_is_bounded() -> None:
    allowance = Allowance(per_day=86_400, at_once=1000, now_s=0)
    assert sum(allowance.take(10, 0) for _ in range(500)) == 100  # at once
    taken = sum(allowance.take(10, second) for second in range(1000) for _ in range(100))
    assert taken * 10 <= 1000 + 1000
    assert taken * 10 > 900
