# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: accuracy and bytes by round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedlearn_demo.rounds import Round

_INK = "#333333"
_ACCURACY = "#1b6ca8"
_UP = "#e07b39"
_DOWN = "#7aa874"


def save_picture(path: Path, title: str, start_accuracy: float, rounds: Sequence[Round]) -> None:
    """Write the picture as PNG; accuracies in 0..1."""
    # Imported here, at the end of a run: it takes a second that the devices need.
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import MaxNLocator, PercentFormatter  # noqa: PLC0415

    figure = Figure(figsize=(8, 6.4), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=13, color=_INK)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))

    numbers = [each.number for each in rounds]
    curve = [start_accuracy, *(each.accuracy for each in rounds)]
    above.plot([0, *numbers], curve, color=_ACCURACY, marker="o", markersize=4, linewidth=2)
    # The start's label stands on the side that the line turns away from.
    rises = curve[1] >= curve[0]
    labels = ((0, curve[0], -18 if rises else 10, "left"), (len(numbers), curve[-1], 10, "right"))
    for place, value, offset, side in labels:
        above.annotate(
            f"{value:.1%}",
            (place, value),
            xytext=(0, offset),
            textcoords="offset points",
            ha=side,
            color=_ACCURACY,
            fontweight="bold",
        )
    above.set_title("Accuracy on 1,000 test digits", loc="left", fontsize=10, color=_INK)
    above.set_ylabel("accuracy")
    above.set_ylim(min(curve) - 0.12, 1.0)
    above.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    up = [each.up_kb for each in rounds]
    down = [each.down_kb for each in rounds]
    below.bar([n - 0.2 for n in numbers], up, 0.4, color=_UP, label="update, up")
    below.bar([n + 0.2 for n in numbers], down, 0.4, color=_DOWN, label="model, down")
    # The first model comes down whole; the scale is for the rounds after it.
    usual = max([*up, *down[1:], 1.0]) * 1.25
    below.set_ylim(0, usual)
    if down[0] > usual:
        below.annotate(
            f"whole model: {down[0]:.0f} kB",
            (numbers[0] + 0.2, usual),
            xytext=(8, -12),
            textcoords="offset points",
            color=_DOWN,
            fontsize=9,
        )
    below.set_title("Bytes of one device, median", loc="left", fontsize=10, color=_INK)
    below.set_ylabel("kB")
    below.set_xlabel("round")
    below.set_xlim(-0.6, len(numbers) + 0.6)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    below.legend(frameon=False, loc="upper right", ncols=2, fontsize=9)

    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_INK)
    figure.savefig(path)
