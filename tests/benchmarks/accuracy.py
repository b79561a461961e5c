# SPDX-License-Identifier: Apache-2.0
"""Int8 against float32 federated averaging, side by side: `make bench-accuracy`.

Both start from the same weights (the dequantised ones of `digits.tflite`) and train the whole
network on the same shards for the same epochs, batches and rounds. Each side's learning rate is
the best of the same candidates on a tenth of the training digits, held out; the test digits judge
the runs that follow, with other seeds and all training digits. The section `untrained` is the same
from random weights, a file whose scales fit nothing that training makes; there the int8 side also
runs with these scales, as a control. Needs the extra `bench` (PyTorch).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.model import Model
from fedlearn_demo.digits import MODEL_PATH, dirichlet_split, load_test, load_train
from tests.benchmarks.setting import Setting
from tests.models import UNTRAINED_PATH

SEEDS = (1, 2, 3, 4, 5)
TUNING_SEEDS = (101, 102)
HELD_OUT = 400
# What else the int8 side can compute with, at its best rate and at one so small that most steps are
# smaller than the grid.
ARITHMETICS: dict[str, dict[str, Any]] = {
    "8 fraction bits, int8 errors": {},
    "no fraction bits, stochastic rounding": {"fraction_bits": 0},
    "8 fraction bits, float32 errors": {"errors": "float32"},
}
SMALL_RATE = 0.01
ARITHMETIC_SEEDS = (1, 2)
# One round's accuracy jumps by half a point; choosing a learning rate wants less noise.
LAST_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Start:
    """A model to start from, the sides that do, and the candidates for their learning rates."""

    path: Path
    sides: tuple[str, ...]
    learning_rates: tuple[float, ...]


TRAINED = Start(MODEL_PATH, ("int8", "float32"), (0.05, 0.07, 0.1, 0.14))
FIXED = "int8, fixed scales"
UNTRAINED = Start(UNTRAINED_PATH, ("int8", FIXED, "float32"), (0.1, 0.14, 0.2, 0.28))
UNTRAINED_SEEDS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one side; `tuning` judges it on held-out training digits."""

    start: Start
    side: str
    setting: Setting
    tuning: bool


@dataclass(frozen=True, slots=True)
class Result:
    """Accuracies (0..1) by round, bytes (0 for float32), seconds.

    The bytes are medians: of the encoded deltas, and of the encoded differences of the models.
    """

    job: Job
    accuracies: tuple[float, ...]
    delta_bytes_median: float
    difference_bytes_median: float
    seconds: float

    @property
    def settled(self) -> float:
        """Mean accuracy of the last rounds."""
        return fmean(self.accuracies[-LAST_ROUNDS:])


def float_weights(model: Model) -> list[NDArray[np.float32]]:
    """Kernels and biases in real units, layer by layer; a bias that is not there is zero."""
    weights = []
    for operator in model.operators:
        if operator.name in ("CONV_2D", "FULLY_CONNECTED"):
            for index in operator.inputs[1:3]:
                if index < 0:
                    channels = model.tensors[operator.outputs[0]].shape[-1]
                    weights.append(np.zeros(channels, np.float32))
                    continue
                array = model.array(index)
                scales = model.tensors[index].scales.astype(np.float32)
                shape = (-1,) + (1,) * (array.ndim - 1)
                weights.append(array.astype(np.float32) * scales.reshape(shape))
    return weights


def work(job: Job) -> Result:
    """Run one job, in a process of its own."""
    began = time.monotonic()
    setting = job.setting
    (x, y), test = load_train(), load_test()
    if job.tuning:
        test = x[:HELD_OUT], y[:HELD_OUT]
        x, y = x[HELD_OUT:], y[HELD_OUT:]
    parts = dirichlet_split(y, setting.clients, setting.alpha, setting.seed)
    shards = [(x[part], y[part]) for part in parts]
    data = job.start.path.read_bytes()
    ups: list[int] = [0]
    downs: list[int] = [0]
    if job.side in ("int8", FIXED):
        from tests.benchmarks import int8_fedavg

        setting = replace(setting, rescale=job.side != FIXED)
        rounds = list(int8_fedavg.run(data, shards, test, setting))
        accuracies = tuple(each.accuracy for each in rounds)
        ups = [size for each in rounds for size in each.delta_bytes]
        downs = [each.difference_bytes for each in rounds]
    else:
        from tests.benchmarks import float_fedavg

        weights = float_weights(Model.parse(data))
        accuracies = tuple(float_fedavg.run(weights, shards, test, setting))
    return Result(job, accuracies, median(ups), median(downs), time.monotonic() - began)


def run_all(pool: ProcessPoolExecutor, jobs: Iterable[Job]) -> Iterator[Result]:
    """Yield results as they come, with a line for each."""
    futures = [pool.submit(work, job) for job in jobs]
    for number, future in enumerate(as_completed(futures), 1):
        result = future.result()
        setting = result.job.setting
        print(
            f"  {number:2}/{len(futures)} {result.job.side:18} seed {setting.seed:3} "
            f"learning rate {setting.learning_rate:<4g}: {result.accuracies[-1]:.1%} "
            f"(last {LAST_ROUNDS} rounds {result.settled:.1%}), {result.seconds:.0f} s",
            flush=True,
        )
        yield result


def tune(
    pool: ProcessPoolExecutor, start: Start
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the best learning rate by side, and the table it comes from."""
    print(f"{start.path.name}: learning rates, on {HELD_OUT} held-out training digits")
    jobs = (
        Job(start, side, Setting(seed, rate), tuning=True)
        for side in start.sides
        for rate in start.learning_rates
        for seed in TUNING_SEEDS
    )
    scores: dict[str, dict[float, list[float]]] = {side: {} for side in start.sides}
    for result in run_all(pool, jobs):
        rate = result.job.setting.learning_rate
        scores[result.job.side].setdefault(rate, []).append(result.settled)
    means = {side: {r: fmean(v) for r, v in sorted(scores[side].items())} for side in start.sides}
    best = {side: max(table, key=lambda rate: table[rate]) for side, table in means.items()}
    return best, {side: {f"{r:g}": v for r, v in means[side].items()} for side in start.sides}


def compare(pool: ProcessPoolExecutor, start: Start, seeds: Sequence[int]) -> dict[str, Any]:
    """All sides, each at its best rate: accuracies and bytes, for the JSON."""
    rates, table = tune(pool, start)
    print(f"{start.path.name}: test digits")
    jobs = [Job(start, side, Setting(seed, rates[side]), False) for seed in seeds for side in rates]
    results = {(r.job.side, r.job.setting.seed): r for r in run_all(pool, jobs)}
    section: dict[str, Any] = {}
    for side in start.sides:
        runs = [results[side, seed] for seed in seeds]
        section[side] = [run.accuracies[-1] for run in runs]
        section[f"{side}_mean"] = fmean(section[side])
        section[f"{side}_last_rounds_mean"] = fmean(run.settled for run in runs)
        section[f"{side}_by_round"] = [run.accuracies for run in runs]
        if side != "float32":
            for key in ("delta_bytes_median", "difference_bytes_median"):
                section[f"{side}_{key}"] = median(getattr(run, key) for run in runs)
    section["difference_points"] = 100 * (section["int8_mean"] - section["float32_mean"])
    section["seeds"] = seeds
    section["learning_rates"] = rates
    section["held_out_accuracy_by_learning_rate"] = table
    means = ", ".join(f"{side} {section[f'{side}_mean']:.2%}" for side in start.sides)
    print(f"{start.path.name}: {means}, difference {section['difference_points']:+.2f} points")
    return section


def compare_arithmetics(pool: ProcessPoolExecutor, best_rate: float) -> list[dict[str, Any]]:
    """Accuracy (mean of the last rounds) and bytes of an update by arithmetic and rate."""
    print("arithmetics of the int8 side")
    settings = {
        (name, rate, seed): Setting(seed, rate, **options)
        for name, options in ARITHMETICS.items()
        for rate in (SMALL_RATE, best_rate)
        for seed in ARITHMETIC_SEEDS
    }
    results = {
        r.job.setting: r
        for r in run_all(pool, [Job(TRAINED, "int8", s, False) for s in settings.values()])
    }
    table = []
    for name in ARITHMETICS:
        for rate in (SMALL_RATE, best_rate):
            runs = [results[settings[name, rate, seed]] for seed in ARITHMETIC_SEEDS]
            table.append(
                {
                    "arithmetic": name,
                    "learning_rate": rate,
                    "accuracy": fmean(run.settled for run in runs),
                    "delta_bytes_median": median(run.delta_bytes_median for run in runs),
                }
            )
    return table


def main() -> int:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.accuracy")
    parser.add_argument("--out", type=Path, default=Path("build/bench/accuracy.json"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--only-untrained", action="store_true", help="leave the rest out")
    options = parser.parse_args()
    if find_spec("torch") is None:
        print("this needs PyTorch: pip install -e '.[bench]'", file=sys.stderr)
        return 1
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"  # the processes share the cores
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        untrained = compare(pool, UNTRAINED, UNTRAINED_SEEDS)
        if options.only_untrained:
            document = {}
        else:
            document = compare(pool, TRAINED, SEEDS)
            rate = document["learning_rates"]["int8"]
            document["arithmetics"] = compare_arithmetics(pool, rate)
    document["untrained"] = untrained
    document["setting"] = asdict(Setting(0, 0.0)) | {"tail": "all"}
    for key in ("seed", "learning_rate", "fraction_bits", "errors", "rescale"):
        del document["setting"][key]
    document["seconds"] = round(time.monotonic() - began, 1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
