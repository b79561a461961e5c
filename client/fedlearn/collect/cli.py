# SPDX-License-Identifier: Apache-2.0
"""The commands `fedlearn collect` and `fedlearn label`."""
# ruff: noqa: PLC0415 - each imports what it needs when it runs

from __future__ import annotations

import argparse
import re
import signal
import time
from datetime import datetime
from pathlib import Path

from fedlearn.collect.intervals import Interval, read_intervals, write_intervals
from fedlearn.collect.rules import class_number
from fedlearn.config import Config, load_config
from fedlearn.durable import storage_errors
from fedlearn.errors import ConfigError, ExitCode
from fedlearn.log import setup
from fedlearn.text import counted

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?")
_UNITS_S = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

COLLECT_HELP = """examples:
  fedlearn collect --config pump-07.toml
  some-program | fedlearn collect --config stdin.toml

[source], [samples] and [ring] of the configuration say what is read and what becomes of it;
fedlearn agent --help lists their keys. Without a [source] there is nothing to do: exit code 0.
"""
LABEL_HELP = """examples:
  fedlearn label squat --next 30s     while it is being done
  fedlearn label 0 --last 2h          what has just been, and was normal
  fedlearn label none --from 2026-11-28T09:00 --to 2026-11-28T09:05
  fedlearn label --list

LABEL is a class number, a name of samples.classes, or none, which takes a label back. A window
gets it that lies wholly within the time; what is given later decides.
"""


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fedlearn label`."""
    parser.add_argument("label", nargs="?", metavar="LABEL")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--last", type=_span, metavar="TIME", help="from so long ago until now")
    when.add_argument("--next", type=_span, metavar="TIME", help="from now on for so long")
    when.add_argument("--from", dest="start", type=_moment, metavar="WHEN", help="local time, ISO")
    parser.add_argument("--to", type=_moment, metavar="WHEN", help="with --from; default: now")
    parser.add_argument("--list", action="store_true", help="show the labels that were given")


def collect(options: argparse.Namespace) -> int:
    """`fedlearn collect`."""
    config = load_config(options.config)
    from fedlearn.agent.stop import StopSignal
    from fedlearn.notify import Notifier

    setup(options.log_level)
    notifier = Notifier.take()
    if not config.source.kind:
        notifier.ready()  # systemd would take an end before that for a failure
        print(f"{options.config} names no source: there is nothing to collect")
        return ExitCode.OK
    from fedlearn.collect.collector import Collector

    stop = StopSignal()
    stop.install()
    Collector(config, stop, options.config.absolute().parent, notifier).run()
    return ExitCode.INTERRUPTED if stop.signal == signal.SIGINT else ExitCode.OK


def label(options: argparse.Namespace) -> int:
    """`fedlearn label`."""
    config = load_config(options.config)
    ring = _ring(config)
    intervals = read_intervals(ring)
    if options.list:
        for each in intervals:
            print(_told(each, config))
        return ExitCode.OK
    if options.label is None:
        raise ConfigError("there is no label", hint="fedlearn label --help has examples")
    number = None
    if options.label != "none":
        number = class_number(options.label, config.samples.classes)
        if number is None:
            known = ", ".join(config.samples.classes) or "numbers from 0 on"
            raise ConfigError(f"there is no class {options.label}", hint=f"known: {known}, none")
    interval = Interval(*_times(options), number)
    if interval.start_ms >= interval.end_ms:
        raise ConfigError("the time ends before it begins", hint="see --from and --to")
    with storage_errors("create", ring):
        ring.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_intervals(ring, [*intervals, interval])
    print(_told(interval, config))
    return ExitCode.OK


def _ring(config: Config) -> Path:
    if not config.source.kind or config.ring.path is None:
        raise ConfigError("this device collects nothing", hint="see [source]")
    return config.ring.path


def _times(options: argparse.Namespace) -> tuple[int, int]:
    now_s = time.time()
    if options.last is not None:
        start_s, end_s = now_s - options.last, now_s
    elif options.next is not None:
        start_s, end_s = now_s, now_s + options.next
    elif options.start is not None:
        start_s, end_s = options.start, options.to or now_s
    else:
        raise ConfigError("when?", hint="--last 30s, --next 30s, or --from and --to")
    return int(1000 * start_s), int(1000 * end_s)


def _told(interval: Interval, config: Config) -> str:
    classes, number = config.samples.classes, interval.label
    name = "none" if number is None else str(number)
    if number is not None and number < len(classes):
        name = classes[number]
    start, end = (
        datetime.fromtimestamp(ms / 1000).isoformat(" ", "seconds")
        for ms in (interval.start_ms, interval.end_ms)
    )
    seconds = (interval.end_ms - interval.start_ms) / 1000
    return f"{start} to {end} ({counted(round(seconds), 'second')}): {name}"


def _span(text: str) -> float:
    found = _SPAN.fullmatch(text)
    if found is None or len(found[1]) > 9:
        raise argparse.ArgumentTypeError("must be a time such as 30s, 5m, 2h or 1d")
    return float(found[1]) * _UNITS_S[found[2]]


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError("must be such as 2026-11-28T09:00") from error
