# SPDX-License-Identifier: Apache-2.0
"""What one sees while the fleet trains: a live table, or one plain line a round in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedlearn_demo.rounds import Round

# The devices need the CPU more than the eye needs frames.
FRAME_S = 0.25
# In a log, a sign of life at least this often.
HEARTBEAT_S = 10.0
# Lines around the rounds: title, heading, frame and progress.
_FURNITURE = 8
# Columns around the bar of a round's accuracy, and the width it has at most.
_FRAME_COLUMNS, _BAR_COLUMNS = 64, 24


class Display(Protocol):
    """Shows the run. `say` is for single sentences, `show` for the state of the rounds."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def say(self, text: str) -> None:
        """Show a sentence, once."""

    def show(self, rounds: Sequence[Round], doing: str) -> None:
        """Show the closed rounds and what is going on now."""


def make_display(console: Console, title: str, rounds: int) -> Display:
    """Return a live table on a terminal, else plain lines."""
    kind = LiveTable if console.is_terminal and not console.is_dumb_terminal else PlainLines
    return kind(console, title, rounds)


class PlainLines:
    """One line a round, for a log or a pipe."""

    def __init__(self, console: Console, title: str, rounds: int) -> None:
        self._console = console
        self._total = rounds
        self._shown = 0
        self._said = 0.0
        self.say(title)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def say(self, text: str) -> None:
        """Print a line."""
        self._said = time.monotonic()
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, rounds: Sequence[Round], doing: str) -> None:
        """Print a line for each round that is new."""
        for each in rounds[self._shown :]:
            self.say(
                f"round {each.number:2}/{self._total}: {each.devices} devices, "
                f"accuracy {each.accuracy:5.1%}, {each.up_kb:.1f} kB up and "
                f"{each.down_kb:.1f} kB down a device, {each.wall_s:.2f} s"
            )
        self._shown = len(rounds)
        if time.monotonic() - self._said >= HEARTBEAT_S:
            self.say(doing)


class LiveTable:
    """A table that grows by a row a round, with a progress bar under it."""

    def __init__(self, console: Console, title: str, rounds: int) -> None:
        self._console = console
        self._title = title
        self._total = rounds
        self._began = time.monotonic()
        self._frame = float("-inf")
        self._rounds: Sequence[Round] = ()
        # Refreshed by hand: a thread of its own would make forking unsafe and cost CPU.
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:  # what stays in the scrollback has all rounds
            self._live.update(self._draw(self._rounds, len(self._rounds), ""))
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(text, highlight=False, markup=False)

    def show(self, rounds: Sequence[Round], doing: str) -> None:
        """Draw the table, at most once in `FRAME_S` unless the run is complete."""
        now = time.monotonic()
        if now - self._frame >= FRAME_S or len(rounds) == self._total:
            self._frame, self._rounds = now, rounds
            room = max(1, self._console.height - _FURNITURE)
            self._live.update(self._draw(rounds, room, doing), refresh=True)

    def _draw(self, rounds: Sequence[Round], room: int, doing: str) -> RenderableType:
        bar_columns = max(4, min(_BAR_COLUMNS, self._console.width - _FRAME_COLUMNS))
        table = Table(expand=False)
        for heading in ("round", "devices", "accuracy", "", "kB up", "kB down", "seconds"):
            table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
        for each in rounds[-room:]:
            table.add_row(
                f"{each.number}",
                f"{each.devices}",
                f"{each.accuracy:.1%}",
                _bar(1.0, each.accuracy, bar_columns, "green"),
                f"{each.up_kb:.1f}",
                f"{each.down_kb:.1f}",
                f"{each.wall_s:.2f}",
            )
        line = Table.grid(padding=(0, 1))
        line.add_row(
            _bar(self._total, len(rounds), 30, "cyan"),
            f"{len(rounds)}/{self._total}",
            f"{time.monotonic() - self._began:.0f} s",
            Text(doing, style="dim"),
        )
        return Group(Text(self._title, style="bold"), table, line)


def _bar(total: float, completed: float, width: int, style: str) -> ProgressBar:
    return ProgressBar(total, completed, width, complete_style=style, finished_style=style)
