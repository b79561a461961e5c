# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: accuracy on unseen people by round, and all figures at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedlearn_demo.gestures.report import Report

_INK, _INT8, _FLOAT, _ALONE = "#333333", "#1b6ca8", "#e07b39", "#7aa874"
_COLOURS = (_INT8, _FLOAT, _ALONE, _INT8, "#5a9bd0", _ALONE, _INT8, _ALONE)
_NAMES = (
    *("federated\nint8", "federated\nfloat32", "alone"),
    *("federated\nint8", "personal\ncopy", "alone"),
    *("few labels,\nfederated", "few labels,\nalone"),
)


def save_picture(path: Path, report: Report) -> None:
    """Write the picture as PNG."""
    # Imported here, at the end of a run: it takes a second that the devices need.
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import PercentFormatter  # noqa: PLC0415

    figure = Figure(figsize=(8, 7), dpi=150, layout="constrained")
    figure.suptitle(
        "Shoulder exercises felt by a smartwatch: one device a person, int8 .tflite",
        fontsize=12,
        color=_INK,
    )
    above, below = figure.subplots(2, 1, height_ratios=(3, 3))
    rounds = np.arange(1, report.settings.rounds + 1)
    for name, colour, label in (
        ("global_by_round", _INT8, "federated, int8"),
        ("float32_by_round", _FLOAT, "federated, float32"),
    ):
        curves = np.array([getattr(each, name) for each in report.choices])
        above.plot(rounds, curves.mean(axis=0), color=colour, linewidth=2, label=label)
        above.fill_between(
            rounds, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, linewidth=0
        )
    alone = report.figures["alone_heldout"].mean
    above.axhline(alone, color=_ALONE, linewidth=2, linestyle="--", label="each device alone")
    held = ", ".join(f"{a} and {b}" for a, b in report.settings.choices)
    above.set_title(f"People whom no device has seen ({held}): mean, least and most", loc="left")
    above.set_xlabel("round")
    above.legend(frameon=False, loc="lower right", ncols=3, fontsize=9)

    places = (0, 1, 2, 3.5, 4.5, 5.5, 7, 8)
    figures = list(report.figures.values())
    below.bar(
        places,
        [each.mean for each in figures],
        0.8,
        yerr=[each.spread for each in figures],
        color=_COLOURS,
        ecolor=_INK,
        capsize=3,
    )
    for place, each in zip(places, figures, strict=True):
        below.annotate(
            f"{each.mean:.0%}",
            (place, 0.02),
            ha="center",
            color="white",
            fontweight="bold",
        )
    below.set_xticks(places, _NAMES, fontsize=8)
    below.set_title(
        "unseen people" + 37 * " " + "the devices' own people, later" + 14 * " " + "a new person",
        loc="left",
        fontsize=10,
    )
    for axes in (above, below):
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_INK)
    figure.savefig(path)
