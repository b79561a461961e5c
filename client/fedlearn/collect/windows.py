# SPDX-License-Identifier: Apache-2.0
"""From samples to windows: so many samples in a row, without a gap, each already int8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedlearn.collect.grid import Grid
from fedlearn.collect.rules import Rule
from fedlearn.collect.sample import Counts, Item


@dataclass(frozen=True, slots=True)
class Window:
    """`data` int8 (window, channels), and its class; `start_ms` to `end_ms` in Unix time."""

    data: bytes
    label: int | None
    start_ms: int
    end_ms: int


class Windower:
    """Cuts a stream into windows of `grid`, one every `stride` samples."""

    def __init__(
        self,
        grid: Grid,
        stride: int,
        counts: Counts,
        *,
        rules: Sequence[Rule] = (),
        max_gap_s: float = 1.0,
    ) -> None:
        self._grid, self._counts, self._rules = grid, counts, rules
        self._stride = stride or grid.window
        self._max_gap_ms = int(1000 * max_gap_s)
        self._width = len(grid.channels)
        self._data = bytearray()
        self._labels: list[int | None] = []
        self._times: list[int] = []
        self._skip = 0  # with a stride larger than a window: samples to leave out
        self._last_ms: int | None = None

    def push(self, item: Item, now_ms: int) -> Iterator[Window]:
        """The windows that this sample completes, at most one; `now_ms` in Unix time."""
        paused = self._last_ms is not None and now_ms - self._last_ms > self._max_gap_ms
        if item is None or paused:
            self.restart()
        if item is None:
            return
        self._last_ms = now_ms
        if self._skip:
            self._skip -= 1
            return
        made, clipped = self._grid.quantise(item.values)
        self._counts.clipped += clipped
        self._data += made
        self._labels.append(item.label)
        self._times.append(now_ms)
        if len(self._labels) == self._grid.window:
            window = self._window()
            if window is not None:
                yield window
            self._advance()

    def restart(self) -> None:
        """Something is missing here: the next window begins behind it."""
        if self._last_ms is None:
            return
        self._counts.breaks += 1
        self._data.clear()
        self._labels.clear()
        self._times.clear()
        self._skip, self._last_ms = 0, None

    def _advance(self) -> None:
        kept = max(0, self._grid.window - self._stride)
        self._skip = max(0, self._stride - self._grid.window)
        gone = self._grid.window - kept
        del self._data[: gone * self._width]
        del self._labels[:gone]
        del self._times[:gone]

    def _window(self) -> Window | None:
        self._counts.windows += 1
        data = bytes(self._data)
        label = self._labels[0]
        if any(each != label for each in self._labels):
            # In the middle of it the wearer began something else: it shows neither class.
            self._counts.mixed += 1
            return None
        if self._rules:
            label = self._by_rule(data)
        self._counts.labelled += label is not None
        return Window(data, label, self._times[0], self._times[-1])

    def _by_rule(self, data: bytes) -> int | None:
        def channel(number: int) -> list[float]:
            return [self._grid.real(byte, number) for byte in data[number :: self._width]]

        return next((rule.label for rule in self._rules if rule.holds(channel)), None)
