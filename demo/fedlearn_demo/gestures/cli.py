# SPDX-License-Identifier: Apache-2.0
"""The sub-command `fedlearn-demo gestures`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from fedlearn.errors import ExitCode
from fedlearn.plan_arguments import real, whole
from fedlearn_demo.gestures.report import summary
from fedlearn_demo.gestures.run import run
from fedlearn_demo.gestures.settings import CHOICES, Settings


def add(tasks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    usual = Settings()
    parser = tasks.add_parser(
        "gestures",
        help="shoulder exercises that a smartwatch felt: one device a person, from sensor to model",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(demo=_settled)
    add_argument = parser.add_argument
    add_argument("--out", type=Path, default=Path("build/demo-gestures"), help="folder of the run")
    add_argument(
        "--choices",
        type=whole(1, len(CHOICES)),
        default=len(CHOICES),
        metavar="N",
        help="choices of the two people who are held out",
    )
    add_argument("--rounds", type=whole(1), default=usual.rounds, metavar="N")
    add_argument("--seed", type=whole(0), default=usual.seed, metavar="N")
    add_argument(
        "--speed",
        type=real(zero=True),
        default=usual.speed,
        metavar="S",
        help="of the replay; 1: as it was recorded, 0: as fast as the devices take it",
    )
    add_argument("--epochs", type=whole(1), default=usual.epochs, metavar="N")
    add_argument("--batch-size", type=whole(1), default=usual.batch_size, metavar="N")
    add_argument("--learning-rate", type=real(), default=usual.learning_rate, metavar="R")
    add_argument("--json", action="store_true", help="print the report to stdout")


def _settled(options: argparse.Namespace) -> Callable[[], int]:
    settings = Settings(
        choices=CHOICES[: options.choices],
        rounds=options.rounds,
        seed=options.seed,
        speed=options.speed,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
    )

    def demo() -> int:
        console = Console(stderr=options.json)
        report = run(settings, options.out, console)
        console.print(
            f"{summary(report)}\n"
            f"a device: {report.collect_rss_mb:.0f} MB for what collects, "
            f"{report.bytes_up_median / 1000:.1f} kB up a round; {report.wall_s:.0f} s in all\n"
            f"picture      {options.out / 'gestures.png'}\n"
            f"all figures  {options.out / 'report.json'}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        if options.json:
            print(report.to_json())
        return ExitCode.OK

    return demo
