# SPDX-License-Identifier: Apache-2.0
"""The figures of a run, as `report.json`, and whether they are what was aimed at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, pstdev

from fedlearn.runtime import runtime_name
from fedlearn_demo.gestures.measure import Choice
from fedlearn_demo.gestures.settings import Settings
from fedlearn_demo.rounds import Round

FIGURES = (
    "global_heldout",
    "float32_heldout",
    "alone_heldout",
    "global_seen",
    "personalised_seen",
    "alone_seen",
    "fewshot_personalised",
    "fewshot_alone",
)
# What is aimed at: so many points more than the other, on the mean of the choices.
AIMS = (
    ("global_heldout", "float32_heldout", -1.0),
    ("global_heldout", "alone_heldout", 10.0),
    ("fewshot_personalised", "fewshot_alone", 15.0),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure over the choices of the held out; accuracies in 0..1."""

    mean: float
    spread: float  # standard deviation
    by_choice: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Aim:
    """Whether one figure is so many points above another."""

    figure: str
    above: str
    points: float
    aimed_at: float

    @property
    def reached(self) -> bool:
        """Whether it is."""
        return self.points >= self.aimed_at


@dataclass(frozen=True, slots=True)
class Report:
    """What a run reached and what it cost."""

    settings: Settings
    runtime: str
    figures: dict[str, Figure]
    aims: tuple[Aim, ...]
    choices: tuple[Choice, ...]
    windows_by_person: tuple[int, ...]
    collect_rss_mb: float  # of the process that collects, the largest
    replay_s: float
    bytes_up_median: float  # an update
    round_s_median: float
    wall_s: float

    def save(self, path: Path) -> None:
        """Write the report."""
        path.write_text(self.to_json() + "\n")

    def to_json(self) -> str:
        """The report as JSON."""
        values = asdict(self)
        for each, aim in zip(values["aims"], self.aims, strict=True):
            each["reached"] = aim.reached
        return json.dumps(values, indent=2)


def make_report(
    settings: Settings,
    choices: Sequence[Choice],
    rounds: Sequence[Round],
    *,
    windows: Sequence[int],
    rss_bytes: int,
    replay_s: float,
    wall_s: float,
) -> Report:
    """Sum everything up."""
    figures = {}
    for name in FIGURES:
        values = tuple(round(float(getattr(each, name)), 4) for each in choices)
        figures[name] = Figure(round(fmean(values), 4), round(pstdev(values), 4), values)
    return Report(
        settings=settings,
        runtime=runtime_name(),
        figures=figures,
        aims=tuple(
            Aim(name, other, round(100 * (figures[name].mean - figures[other].mean), 1), points)
            for name, other, points in AIMS
        ),
        choices=tuple(choices),
        windows_by_person=tuple(windows),
        collect_rss_mb=round(rss_bytes / 1e6, 1),
        replay_s=round(replay_s, 1),
        bytes_up_median=median(size for each in rounds for size in each.bytes_up),
        round_s_median=round(median(each.wall_s for each in rounds), 2),
        wall_s=round(wall_s, 1),
    )


_WORDS = {
    "global_heldout": "people no device has seen: the federated int8 model",
    "float32_heldout": "  float32 FedAvg, same rounds",
    "alone_heldout": "  each device's own model",
    "global_seen": "the devices' own people, later: the federated int8 model",
    "personalised_seen": "  each device's copy, trained further for it",
    "alone_seen": "  each device's own model",
    "fewshot_personalised": "a new person with a few labels: from the federated model",
    "fewshot_alone": "  from the starting model",
}


def summary(report: Report) -> str:
    """The figures in lines for a terminal."""
    lines = [
        f"{_WORDS[name]:<58} {figure.mean:6.1%} +- {100 * figure.spread:.1f}"
        for name, figure in report.figures.items()
    ]
    lines += [
        f"{each.figure} - {each.above}: {each.points:+.1f} points, aimed at {each.aimed_at:+.0f} "
        f"or more: {'reached' if each.reached else 'not reached'}"
        for each in report.aims
    ]
    return "\n".join(lines)
