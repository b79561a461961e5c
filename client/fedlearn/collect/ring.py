# SPDX-License-Identifier: Apache-2.0
"""The windows that a device keeps: a directory of bounded size, of which one process is the writer.

A window waits in memory for `sync_s` seconds at most, then all that wait are appended and synced at
once: a power cut costs the windows of that time, or tears the last record, which readers tell by
its CRC and the writer cuts off. Files are appended to or removed and never rewritten, so a reader
needs no lock: what it finds whole was written whole. When the ring is full its oldest segment goes,
a sixty-fourth of it: the wear is what the sensor makes, once, and a sync every `sync_s` seconds.

    lock                      held by the writer
    0000000042.none.seg       segments by number, and label where windows have one
    labels.json               labels that came afterwards, see `fedlearn.collect.intervals`
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedlearn import lock
from fedlearn.collect.grid import Grid
from fedlearn.collect.segment import Head, name_of, parse_name, record_bytes
from fedlearn.collect.settings import SEGMENTS, RingConfig
from fedlearn.collect.windows import Window
from fedlearn.durable import storage_errors, sync_directory
from fedlearn.errors import StorageError

# What waits in memory, whatever `sync_s` says.
MAX_WAITING_BYTES = 256 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class _Segment:
    number: int
    label: int | None
    path: Path
    size: int


class RingWriter:
    """Appends windows of one grid. Raises StorageError where the disk does not take them."""

    def __init__(
        self,
        path: Path,
        grid: Grid,
        config: RingConfig,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._grid, self._config, self._monotonic = path, grid, config, monotonic
        with storage_errors("create", path):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = lock.take(
            path,
            StorageError(
                f"another process collects into {path}",
                hint="stop it, or give this one a ring.path of its own",
            ),
        )
        with storage_errors("read", path):
            self._segments = sorted(_found(path), key=lambda each: each.number)
        self._size = config.size_kib * 1024
        least = len(Head.make(0, grid).data) + record_bytes(grid)
        self._segment_size = max(self._size // SEGMENTS, least)
        self._open: dict[int | None, tuple[_Segment, Head]] = {}
        self._waiting: list[Window] = []
        self._since: float | None = None
        self.dropped_segments = 0
        self.stored = 0

    def add(self, window: Window) -> None:
        """Take a window; it is on disk after `sync_s` seconds at most, if `tick` is called."""
        self._waiting.append(window)
        if self._since is None:
            self._since = self._monotonic()
        if len(self._waiting) * record_bytes(self._grid) >= MAX_WAITING_BYTES:
            self.flush()
        else:
            self.tick()

    def tick(self) -> None:
        """Write what has waited long enough."""
        if self._since is not None and self._monotonic() - self._since >= self._config.sync_s:
            self.flush()

    def flush(self) -> None:
        """Write everything now. What cannot be written is dropped: memory is bounded, too."""
        waiting, self._waiting, self._since = self._waiting, [], None
        by_label: dict[int | None, list[Window]] = {}
        for window in waiting:
            by_label.setdefault(window.label, []).append(window)
        for label, windows in by_label.items():
            with storage_errors("write", self._path):
                self._append(label, windows)

    def close(self) -> None:
        """Write everything and let go of the directory."""
        try:
            self.flush()
        finally:
            os.close(self._lock)

    def _append(self, label: int | None, windows: list[Window]) -> None:
        size = record_bytes(self._grid)
        while windows:
            segment, head = self._segment(label)
            count = max(1, (self._segment_size - segment.size) // size)
            part, windows = windows[:count], windows[count:]
            data = b"".join(map(head.record, part))
            while not self._written(segment, data):
                if not self._drop(sparing=segment):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.stored += len(part)

    def _written(self, segment: _Segment, data: bytes) -> bool:
        """Append and sync; False, with nothing of it left, when the disk is full."""
        try:
            handle = os.open(segment.path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # somebody emptied the directory
            self._open.pop(segment.label, None)
            self._segments.remove(segment)
            raise
        try:
            os.ftruncate(handle, segment.size)
            _write_all(handle, data, segment.size)
            os.fdatasync(handle)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            os.ftruncate(handle, segment.size)
            return False
        finally:
            os.close(handle)
        segment.size += len(data)
        return True

    def _segment(self, label: int | None) -> tuple[_Segment, Head]:
        """The segment to append to: the last one of this label, or a new one."""
        if label not in self._open:
            found = self._last(label)
            if found is not None:
                self._open[label] = found
        if label in self._open:
            segment, head = self._open[label]
            if segment.size + record_bytes(self._grid) <= self._segment_size:
                return segment, head
        self._open[label] = self._begin(label)
        return self._open[label]

    def _last(self, label: int | None) -> tuple[_Segment, Head] | None:
        """The last segment of an earlier run, cut off behind its last whole record."""
        segment = next((each for each in self._segments[::-1] if each.label == label), None)
        if segment is None:
            return None
        data = segment.path.read_bytes()
        head = Head.parse(data)
        if head is None or head.grid != self._grid or head.number != segment.number:
            return None
        segment.size = max((end for end, _ in head.records(data)), default=len(head.data))
        return segment, head

    def _begin(self, label: int | None) -> tuple[_Segment, Head]:
        while sum(each.size for each in self._segments) + self._segment_size > self._size:
            if not self._drop():
                break
        number = self._segments[-1].number + 1 if self._segments else 1
        head = Head.make(number, self._grid)
        path = self._path / name_of(number, label)
        while True:
            try:
                path.write_bytes(head.data)
                break
            except OSError as error:
                path.unlink(missing_ok=True)
                if error.errno not in _FULL or not self._drop():
                    raise
        sync_directory(self._path)
        segment = _Segment(number, label, path, len(head.data))
        self._segments.append(segment)
        return segment, head

    def _drop(self, sparing: _Segment | None = None) -> bool:
        """Remove a segment, the oldest, or with `balance` the oldest of the largest label."""
        choice = [each for each in self._segments if each is not sparing]
        if not choice:
            return False
        victim = choice[0]
        if self._config.balance:
            sizes: dict[int | None, int] = {}
            for each in choice:
                sizes[each.label] = sizes.get(each.label, 0) + each.size
            largest = max(sizes.values())
            victim = next(each for each in choice if sizes[each.label] == largest)
        victim.path.unlink(missing_ok=True)
        self._segments.remove(victim)
        if self._open.get(victim.label, (None,))[0] is victim:
            del self._open[victim.label]
        self.dropped_segments += 1
        return True


def _found(path: Path) -> Iterator[_Segment]:
    for entry in path.iterdir():
        parsed = parse_name(entry.name)
        if parsed is None:
            continue
        try:
            size = entry.stat().st_size if entry.is_file() else None
        except FileNotFoundError:  # between two looks its writer has dropped it
            continue
        if size is not None:
            yield _Segment(*parsed, entry, size)


def _write_all(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(handle, view, offset)
        view, offset = view[count:], offset + count


def read_ring(path: Path) -> tuple[Grid, list[Window]]:
    """A snapshot of the ring while its writer may go on: grid and whole windows.

    Segment by segment, the oldest first, so windows of one label are in the order of time.
    The grid is that of the newest segment; windows of other grids are left out. Raises
    FileNotFoundError when there is none.
    """
    grid, windows = None, []
    for segment in sorted(_found(path), key=lambda each: each.number, reverse=True):
        try:
            data = segment.path.read_bytes()
        except FileNotFoundError:  # the oldest, which the writer has dropped since
            continue
        head = Head.parse(data)
        if head is None:
            continue
        grid = grid or head.grid
        if head.grid == grid:
            windows.append([window for _, window in head.records(data)])
    if grid is None:
        raise FileNotFoundError(errno.ENOENT, "no segment", str(path))
    return grid, [window for each in reversed(windows) for window in each]
