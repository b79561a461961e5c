# SPDX-License-Identifier: Apache-2.0
"""What the collecting process tells about itself: `collect.json` beside the agent's status."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fedlearn.collect.sample import Counts
from fedlearn.durable import storage_errors
from fedlearn.text import clean, counted

FILE = "collect.json"


@dataclass(frozen=True, slots=True)
class Score:
    """How strange a window is: the autoencoder's mean squared error, and what is strange."""

    score: float
    threshold: float | None  # None: too few windows in the ring to tell one
    model: str  # SHA-256 (hex) of the model that says so
    time: float = 0.0  # Unix seconds

    @property
    def anomaly(self) -> bool | None:
        """Whether it is an anomaly; None without a threshold."""
        return None if self.threshold is None else self.score > self.threshold


@dataclass(frozen=True, slots=True)
class CollectStatus:
    """The collecting process at one moment."""

    pid: int = 0
    started: float = 0.0  # Unix seconds
    source: str = ""
    state: str = ""
    last_error: str = ""
    rate_hz: float = 0.0  # samples, over the last seconds
    grid: str = ""  # fingerprint of the grid: the same on all devices of a task
    counts: Counts = field(default_factory=Counts)
    stored: int = 0  # windows
    refused: int = 0  # windows beyond ring.max_mib_a_day
    unwritten: int = 0  # windows that the disk did not take
    dropped_segments: int = 0
    rss_bytes: int = 0
    anomalies: int = 0
    score: Score | None = None

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        try:
            os.kill(self.pid, 0)
        except PermissionError:  # it runs, as another user
            return True
        except (OSError, OverflowError):
            return False
        return self.pid > 0


def write(path: Path, status: CollectStatus) -> None:
    """Replace the file atomically. No fsync: it tells of a process that a power cut ends too."""
    values = asdict(status)
    if status.score is not None:
        values["score"]["anomaly"] = status.score.anomaly
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors("write", path):
        temporary.write_text(json.dumps(values, indent=1) + "\n")
        temporary.replace(path)


def read(path: Path) -> CollectStatus | None:
    """Read the file; None when there is none, or none that can be read."""
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        values["counts"] = Counts(**_known(Counts, values["counts"]))
        if values["score"] is not None:
            values["score"] = Score(**_known(Score, values["score"]))
        return CollectStatus(**_known(CollectStatus, values))
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _known(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def describe(status: CollectStatus) -> str:
    """Describe it for a person, in lines as those of the agent's status."""
    counts = status.counts
    state = f"{status.state}, {status.rate_hz:.1f} samples/s" if status.alive else "not running"
    lines = [
        ("sensor", f"{status.source}: {state}"),
        (
            "samples",
            f"{counts.samples:,}; {counted(counts.breaks, 'gap')}, {counts.lost:,} lost, "
            f"{counts.garbage + counts.overlong:,} garbled, {counts.clipped:,} values cut off",
        ),
        (
            "windows",
            f"{counts.windows:,}, {counts.labelled:,} labelled in the stream, "
            f"{status.stored:,} on disk since the start; grid {status.grid}",
        ),
    ]
    if status.score is not None:
        lines.append(("score", _told(status.score, status.anomalies)))
    if status.last_error:
        lines.append(("sensor err", status.last_error))
    return "\n".join(f"{name:<11} {clean(text)}" for name, text in lines)


def _told(score: Score, anomalies: int) -> str:
    if score.threshold is None:
        return f"{score.score:.6g}, no threshold yet"
    verdict = "an anomaly" if score.anomaly else "normal"
    return (
        f"{score.score:.6g}, {verdict} (threshold {score.threshold:.6g}); "
        f"{counted(anomalies, 'anomalous window')} since the start"
    )
