# SPDX-License-Identifier: Apache-2.0
"""Runs the contenders of the training benchmark in turn and writes what they reached.

Each run is a process of its own. They alternate, so that whatever else the machine does hits all of
them alike, and a figure is the median of its runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fedlearn.runtime import runtime_name
from fedlearn_demo.digits import load_train
from tests.benchmarks.case import BATCH, CASES, KERNEL_VARIABLES, LEARNING_RATE, SAMPLES, Case

CONTENDERS = ("ours", "torch", "tflite")
FIGURES = ("samples_per_cpu_s", "peak_rss_mb")
PROFILED = ("c", "mobilenet")
# Cases with a frozen part, and how often it is run.
FROZEN = {"b": 3, "mobilenet": 2}
RUNS = 5
_LONGEST_RUN_S = 600

METHOD = (
    "Every run is a fresh process that trains on 4,000 digits with plain SGD and one thread. "
    "samples_per_cpu_s: samples by CPU time (time.process_time) of the training loop alone, from "
    "the end of the first step to that of the last; start-up, loading and the frozen part's "
    "features are outside of the clock. peak_rss_mb: VmHWM of the whole process, those included, "
    "in 10^6 bytes. frozen: the features, by our layers and by TFLite's interpreter without "
    "delegates, in samples by CPU second. Figures are medians of the runs; contenders alternate."
)


def write_data(path: Path) -> None:
    """The digits as a device has them: an `.npz` file, not compressed."""
    x, y = load_train()
    assert len(y) == SAMPLES
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=x, y=y)


def run_once(contender: str, case: Case, data: Path, epochs: int | None = None) -> dict[str, Any]:
    """One run in a process of its own; {"absent": reason} where the contender cannot do it."""
    command = [sys.executable, "-m", "tests.benchmarks.trainer", "--run", contender, case.name]
    finished = subprocess.run(
        [*command, str(data.resolve()), str(epochs or case.epochs)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=_LONGEST_RUN_S,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(f"{contender} {case.name} failed\n{finished.stderr}")
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


@dataclass
class Sheet:
    """The runs of one contender on one case."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    absent: str | None = None

    def summary(self) -> dict[str, Any]:
        """Medians and all runs, or why there are none."""
        if self.absent is not None:
            return {"absent": self.absent}
        medians = {figure: round(self.median(figure), 1) for figure in FIGURES}
        return {**medians, "runs": self.runs}

    def median(self, figure: str) -> float:
        """Over the runs."""
        return median(float(run[figure]) for run in self.runs)


def compare(cases: Iterable[Case], contenders: Iterable[str], data: Path, runs: int) -> Any:
    """Every contender on every case, in turn; sheets by case and contender."""
    sheets = {case.name: {name: Sheet() for name in contenders} for case in cases}
    for case_name, row in sheets.items():
        print(f"{case_name}: {CASES[case_name].what}", flush=True)
        for number in range(1, runs + 1):
            for name, sheet in row.items():
                if sheet.absent is not None:
                    continue
                result = run_once(name, CASES[case_name], data)
                sheet.absent = result.get("absent")
                if sheet.absent is None:
                    sheet.runs.append(result)
                print(f"  {number}/{runs} {name:7} {_line(result)}", flush=True)
    return sheets


def _line(result: dict[str, Any]) -> str:
    if "absent" in result:
        return f"absent: {result['absent']}"
    losses = result["epoch_losses"]
    return (
        f"{result['samples_per_cpu_s']:10,.0f} samples/s, {result['peak_rss_mb']:6.1f} MB, "
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    )


def ratios(row: dict[str, Sheet]) -> dict[str, float]:
    """How many times faster and smaller ours is than the others, where both ran."""
    found = {}
    ours = row.get("ours")
    for name, other in row.items():
        if ours is None or other is ours or not ours.runs or not other.runs:
            continue
        speed, memory = FIGURES
        found[f"speed_to_{name}"] = round(ours.median(speed) / other.median(speed), 3)
        found[f"memory_of_{name}"] = round(other.median(memory) / ours.median(memory), 3)
    return found


def machine() -> dict[str, Any]:
    """What the figures depend on, besides the code."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": _version("torch"),
        "tflite": runtime_name(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
        # Set where this was started, and taken out of the contenders' environment.
        "dropped_variables": {n: os.environ[n] for n in KERNEL_VARIABLES if n in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.trainer")
    parser.add_argument("--out", type=Path, default=Path("build/bench/trainer.json"))
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Run the benchmark and write its JSON."""
    options = _arguments(words)
    if "torch" in options.contenders and find_spec("torch") is None:
        print("this needs PyTorch: pip install -e '.[bench]'", file=sys.stderr)
        return 1
    began, at_start = time.monotonic(), machine()
    data = options.out.parent / "digits.npz"
    write_data(data)
    cases = [CASES[name] for name in options.cases]
    sheets = compare(cases, options.contenders, data, options.runs)
    profile = {
        case.name: run_once("profile", case, data)
        for case in cases
        if case.name in PROFILED and "ours" in options.contenders
    }
    frozen = {
        case.name: run_once("prefix", case, data, FROZEN[case.name])
        for case in cases
        if case.name in FROZEN and "ours" in options.contenders
    }
    document = {
        "cases": {
            case.name: {
                "what": case.what,
                **{name: sheet.summary() for name, sheet in sheets[case.name].items()},
                "ratios": ratios(sheets[case.name]),
            }
            for case in cases
        },
        "profile": profile,
        "frozen": frozen,
        "settings": {
            "method": METHOD,
            "batch_size": BATCH,
            "samples": SAMPLES,
            "epochs": {case.name: case.epochs for case in cases},
            "learning_rate": LEARNING_RATE,
            "threads": 1,
            "runs": options.runs,
            **at_start,
        },
        "seconds": round(time.monotonic() - began, 1),
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    for case in cases:
        row = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios(sheets[case.name]).items())
        print(f"{case.name}: {row or 'nothing to compare'}")
    for name, each in frozen.items():
        print(f"{name}, frozen part: {each['ours'] / each['interpreter']:.2f} of the interpreter")
    print(options.out)
    return 0
