# SPDX-License-Identifier: Apache-2.0
"""Labels that a person gives to a time, past or to come: `fedlearn label`.

A window that lies wholly within an interval has its label; of several intervals the one that was
given last decides. They stand beside the ring and are laid over it when it is read, so a label can
be given, changed and taken back long after the windows were written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedlearn.collect.windows import Window
from fedlearn.durable import write_durably
from fedlearn.errors import StorageError

FILE = "labels.json"
# A person labels some hundred times; of more than these the oldest go.
MAX_INTERVALS = 4096


@dataclass(frozen=True, slots=True)
class Interval:
    """From `start_ms` up to `end_ms`, Unix time; a `label` of None takes labels back."""

    start_ms: int
    end_ms: int
    label: int | None


def read_intervals(ring: Path) -> list[Interval]:
    """Those beside a ring, in the order in which they were given."""
    path = ring / FILE
    try:
        values = json.loads(path.read_bytes())
        return [
            Interval(
                int(each["start_ms"]),
                int(each["end_ms"]),
                None if each["label"] is None else int(each["label"]),
            )
            for each in values
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise StorageError(
            f"cannot read {path}: {error}", hint="remove it to go on without these labels"
        ) from error


def write_intervals(ring: Path, intervals: Sequence[Interval]) -> None:
    """Replace them, durably."""
    values = [asdict(each) for each in intervals[-MAX_INTERVALS:]]
    write_durably(ring / FILE, (json.dumps(values, indent=0) + "\n").encode())


def label_windows(windows: Iterable[Window], intervals: Sequence[Interval]) -> list[Window]:
    """The windows, each with the label of the last interval that holds it."""
    if not intervals:
        return list(windows)
    return [_labelled(window, intervals) for window in windows]


def _labelled(window: Window, intervals: Sequence[Interval]) -> Window:
    for each in reversed(intervals):
        if each.start_ms <= window.start_ms and window.end_ms < each.end_ms:
            return replace(window, label=each.label)
    return window
