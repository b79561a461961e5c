# SPDX-License-Identifier: Apache-2.0
"""Int8 against float32 federated averaging, side by side: `make bench-accuracy`.

Both start from the same weights (the dequantised ones of `digits.tflite`) and train the whole
network on the same shards for the same epochs, batches and rounds. Each side's learning rate is
the best of the same candidates on a tenth of the training digits, held out; the test digits judge
the runs that follow, with other seeds and all training digits. Needs the extra `bench` (PyTorch).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.model import Model
from fedlearn_demo.digits import MODEL_PATH, dirichlet_split, load_test, load_train
from tests.benchmarks.setting import Setting

SIDES = ("int8", "float32")
SEEDS = (1, 2, 3, 4, 5)
TUNING_SEEDS = (101, 102)
LEARNING_RATES = (0.05, 0.07, 0.1, 0.14)
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
class Job:
    """One run of one side; `tuning` judges it on held-out training digits."""

    side: str
    setting: Setting
    tuning: bool


@dataclass(frozen=True, slots=True)
class Result:
    """Accuracies (0..1) by round, median bytes of the encoded deltas (0 for float32), seconds."""

    job: Job
    accuracies: tuple[float, ...]
    delta_bytes_median: float
    seconds: float

    @property
    def settled(self) -> float:
        """Mean accuracy of the last rounds."""
        return fmean(self.accuracies[-LAST_ROUNDS:])


def float_weights(model: Model) -> list[NDArray[np.float32]]:
    """Kernels and biases in real units, layer by layer."""
    weights = []
    for operator in model.operators:
        if operator.name in ("CONV_2D", "FULLY_CONNECTED"):
            for index in operator.inputs[1:3]:
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
    data = MODEL_PATH.read_bytes()
    sizes: list[int] = []
    if job.side == "int8":
        from tests.benchmarks import int8_fedavg

        rounds = list(int8_fedavg.run(data, shards, test, setting))
        accuracies = tuple(each.accuracy for each in rounds)
        sizes = [size for each in rounds for size in each.delta_bytes]
    else:
        from tests.benchmarks import float_fedavg

        weights = float_weights(Model.parse(data))
        accuracies = tuple(float_fedavg.run(weights, shards, test, setting))
    return Result(job, accuracies, median(sizes) if sizes else 0, time.monotonic() - began)


def run_all(pool: ProcessPoolExecutor, jobs: Iterable[Job]) -> Iterator[Result]:
    """Yield results as they come, with a line for each."""
    futures = [pool.submit(work, job) for job in jobs]
    for number, future in enumerate(as_completed(futures), 1):
        result = future.result()
        setting = result.job.setting
        print(
            f"  {number:2}/{len(futures)} {result.job.side:7} seed {setting.seed:3} "
            f"learning rate {setting.learning_rate:<4g}: {result.accuracies[-1]:.1%} "
            f"(last {LAST_ROUNDS} rounds {result.settled:.1%}), {result.seconds:.0f} s",
            flush=True,
        )
        yield result


def tune(pool: ProcessPoolExecutor) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the best learning rate by side, and the table it comes from."""
    print(f"learning rates, on {HELD_OUT} held-out training digits")
    jobs = (
        Job(side, Setting(seed, rate), tuning=True)
        for side in SIDES
        for rate in LEARNING_RATES
        for seed in TUNING_SEEDS
    )
    scores: dict[str, dict[float, list[float]]] = {side: {} for side in SIDES}
    for result in run_all(pool, jobs):
        rate = result.job.setting.learning_rate
        scores[result.job.side].setdefault(rate, []).append(result.settled)
    means = {side: {r: fmean(v) for r, v in sorted(scores[side].items())} for side in SIDES}
    best = {side: max(table, key=lambda rate: table[rate]) for side, table in means.items()}
    return best, {side: {f"{r:g}": v for r, v in means[side].items()} for side in SIDES}


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
        r.job.setting: r for r in run_all(pool, [Job("int8", s, False) for s in settings.values()])
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
    options = parser.parse_args()
    if find_spec("torch") is None:
        print("this needs PyTorch: pip install -e '.[bench]'", file=sys.stderr)
        return 1
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"  # the processes share the cores
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        rates, table = tune(pool)
        print("test digits")
        jobs = [Job(side, Setting(seed, rates[side]), False) for seed in SEEDS for side in SIDES]
        results = {(r.job.side, r.job.setting.seed): r for r in run_all(pool, jobs)}
        arithmetics = compare_arithmetics(pool, rates["int8"])
    document: dict[str, Any] = {
        side: [results[side, seed].accuracies[-1] for seed in SEEDS] for side in SIDES
    }
    for side in SIDES:
        runs = [results[side, seed] for seed in SEEDS]
        document[f"{side}_mean"] = fmean(document[side])
        document[f"{side}_last_rounds_mean"] = fmean(run.settled for run in runs)
        document[f"{side}_by_round"] = [run.accuracies for run in runs]
    document["difference_points"] = 100 * (document["int8_mean"] - document["float32_mean"])
    document["int8_delta_bytes_median"] = median(
        results["int8", seed].delta_bytes_median for seed in SEEDS
    )
    document["arithmetics"] = arithmetics
    document["seeds"] = SEEDS
    document["learning_rates"] = rates
    document["held_out_accuracy_by_learning_rate"] = table
    document["setting"] = asdict(Setting(0, 0.0)) | {"tail": "all"}
    for key in ("seed", "learning_rate", "fraction_bits", "errors"):
        del document["setting"][key]
    document["seconds"] = round(time.monotonic() - began, 1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(
        f"int8 {document['int8_mean']:.2%}, float32 {document['float32_mean']:.2%}, "
        f"difference {document['difference_points']:+.2f} points; {options.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
