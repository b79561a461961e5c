# SPDX-License-Identifier: Apache-2.0
"""All ordeals one after the other, each with its control: `make bench-faults`.

Each one's figures go to the JSON when it ends, so a run that is cut short keeps what it has, and
`--only` renews a part. The exit code is 1 when something does not hold, or a control does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.faults import churn, disk, killing, load, malformed, slow, soak
from tests.client.agent import impostors

_HERE = "tests.benchmarks.faults"
Ordeal = Callable[[Path], dict[str, Any]]
Judge = Callable[[dict[str, Any]], list[str]]


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def _impostors(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return asdict(impostors.run(folder, 50))


def _gullible(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return asdict(impostors.run(folder, 14, gullible=True))


def _found_without_a_word(figures: dict[str, Any]) -> list[str]:
    wrong = [f"{kind} is told something" for kind, size in figures["leaked"].items() if size]
    if (figures["found_s"] or 1e9) > 30:
        wrong.append("the true aggregator is not found in time")
    return wrong


@dataclass(frozen=True, slots=True)
class Section:
    """An ordeal, who judges it, and the same with something that must fail."""

    run: Ordeal
    judge: Judge
    control: Ordeal | None = None


SECTIONS = {
    "kill": Section(
        lambda folder: killing.ordeal(folder, kills=200, rounds=50, devices=20),
        killing.faults,
        lambda folder: killing.ordeal(
            folder, kills=3, rounds=5, devices=4, module=f"{_HERE}.hasty"
        ),
    ),
    "disk": Section(
        lambda folder: disk.ordeal(folder, points=340),
        disk.faults,
        lambda folder: disk.ordeal(folder, points=2, ack_anyway=True),
    ),
    "malformed": Section(
        lambda folder: malformed.ordeal(folder, codec_bodies=1_000_000, http_bodies=100_000),
        malformed.faults,
    ),
    "slow": Section(
        lambda folder: slow.ordeal(folder, slow=500, good=50, seconds=30),
        slow.faults,
        lambda folder: slow.ordeal(folder, slow=40, good=4, seconds=20, module=f"{_HERE}.trusting"),
    ),
    "impostors": Section(_impostors, _found_without_a_word, _gullible),
    "churn": Section(lambda folder: churn.ordeal(folder, devices=20, deadline_s=3.0), churn.faults),
    "soak": Section(
        lambda folder: soak.ordeal(folder, rounds=2000, devices=20, say=say),
        soak.faults,
        lambda folder: soak.ordeal(folder, rounds=100, devices=5, module=f"{_HERE}.leaky"),
    ),
    "load": Section(
        lambda folder: load.ordeal(folder, devices=(100, 1000, 5000), rounds=10, say=say),
        load.faults,
    ),
}


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.faults", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/faults.json"))
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="may be repeated")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = json.loads(options.out.read_text()) if options.out.exists() else {}
    failed = False
    for name in options.only or SECTIONS:
        section = SECTIONS[name]
        with tempfile.TemporaryDirectory() as folder:
            began, load_before = time.monotonic(), os.getloadavg()[0]
            figures = section.run(Path(folder) / "run")
            wrong = section.judge(figures)
            document[name] = {
                **figures,
                "faults": wrong,
                "seconds": round(time.monotonic() - began, 1),
                # Of other programs, mostly: what the latencies here are worth.
                "load_before": round(load_before, 2),
            }
            say(f"{name}: {'; '.join(wrong) or 'holds'}")
            if section.control is not None:
                seen = section.judge(section.control(Path(folder) / "control"))
                document[name]["control"] = seen
                say(f"{name}, control: {'; '.join(seen) or 'NOTHING IS SEEN'}")
                failed |= not seen
            failed |= bool(wrong)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(options.out)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
