# SPDX-License-Identifier: Apache-2.0
"""The command `fedlearn-demo`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from fedlearn import command
from fedlearn.errors import ExitCode
from fedlearn.version import VERSION
from fedlearn.wire.messages import TAILS
from fedlearn_demo.display import make_display
from fedlearn_demo.gestures import cli as gestures
from fedlearn_demo.report import Report
from fedlearn_demo.run import run
from fedlearn_demo.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    command.stop_on_signals()
    return command.run("fedlearn-demo", options.demo(options))


def _digits(options: argparse.Namespace) -> Callable[[], int]:
    settings = Settings(
        devices=options.devices,
        rounds=options.rounds,
        seed=options.seed,
        alpha=options.alpha,
        tail=options.tail,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
    )
    return lambda: _demo(settings, options)


def _demo(settings: Settings, options: argparse.Namespace) -> int:
    # With --json, stdout holds the report and nothing else.
    console = Console(stderr=options.json)
    with make_display(console, settings.title, settings.rounds) as display:
        report = run(settings, options.out, display)
    console.print(_summary(report, options.out), highlight=False, markup=False, soft_wrap=True)
    if options.json:
        print(report.to_json())
    return ExitCode.OK


def _summary(report: Report, out: Path) -> str:
    return (
        f"accuracy {report.start_accuracy:.1%} -> {report.final_accuracy:.1%} on 1,000 test digits"
        f" ({report.runtime}), {report.wall_s:.0f} s\n"
        f"a device and round: {report.bytes_up_median / 1000:.1f} kB up, "
        f"{report.bytes_down_median / 1000:.1f} kB down, "
        f"{report.round_overhead_s_median:.2f} s beyond local training\n"
        f"a device: {report.device_idle_rss_mb:.0f} MB while it waits, at most "
        f"{report.device_peak_rss_mb:.0f} MB while it trains, first training after "
        f"{report.first_training_s:.1f} s\n"
        f"final model  {out / 'digits-final.tflite'}\n"
        f"picture      {out / 'accuracy.png'}\n"
        f"all figures  {out / 'report.json'}"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    usual = Settings()
    parser = argparse.ArgumentParser(
        prog="fedlearn-demo", description="Federate a real task over loopback, on real processes."
    )
    parser.add_argument("--version", action="version", version=f"fedlearn {VERSION}")
    tasks = parser.add_subparsers(required=True, metavar="TASK")
    digits = tasks.add_parser(
        "digits",
        help="handwritten digits; the starting model knows only 0 to 4",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    digits.set_defaults(demo=_digits)
    gestures.add(tasks)
    digits.add_argument("--out", type=Path, default=Path("build/demo"), help="folder of the run")
    digits.add_argument("--devices", type=_positive, default=usual.devices, metavar="N")
    digits.add_argument("--rounds", type=_positive, default=usual.rounds, metavar="N")
    digits.add_argument("--seed", type=int, default=usual.seed, metavar="N")
    digits.add_argument(
        "--alpha", type=float, default=usual.alpha, metavar="A", help="skew: less is more skewed"
    )
    digits.add_argument("--tail", choices=TAILS, default=usual.tail)
    digits.add_argument("--epochs", type=_positive, default=usual.epochs, metavar="N")
    digits.add_argument("--batch-size", type=_positive, default=usual.batch_size, metavar="N")
    digits.add_argument("--learning-rate", type=float, default=usual.learning_rate, metavar="R")
    digits.add_argument("--json", action="store_true", help="print the report to stdout")
    return parser
