# SPDX-License-Identifier: Apache-2.0
"""Accuracy with and without hostile devices, by aggregation rule: `make bench-robust`.

Ten devices train the whole digits network as in the demo. In the attacked runs two of them send
their updates with the sign turned and ten times as large, as far as int8 goes, and claim ranges
of their activations that are ten times too wide.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from fedlearn.model import Model
from fedlearn.wire.messages import ActivationRange
from fedlearn_aggregator.robust import AggregationSettings, Rule
from fedlearn_demo.digits import MODEL_PATH, dirichlet_split, load_test, load_train
from tests.benchmarks.int8_fedavg import Update, honest, run
from tests.benchmarks.setting import Setting

ATTACKERS = (0, 1)  # of ten: 20 %
FACTOR = 10
LEARNING_RATE = 0.05
SEEDS = (1, 2, 3)
# One round's accuracy jumps by half a point.
LAST_ROUNDS = 5
RULES = {
    "mean": AggregationSettings(),
    "mean, clipped at the median norm": AggregationSettings(clip=1.0),
    "median": AggregationSettings(Rule.MEDIAN),
    "trimmed-mean": AggregationSettings(Rule.TRIMMED_MEAN),
    "krum": AggregationSettings(Rule.KRUM),
    "multi-krum": AggregationSettings(Rule.MULTI_KRUM),
    "median, mixed": AggregationSettings(Rule.MEDIAN, mix=True),
    "trimmed-mean, mixed": AggregationSettings(Rule.TRIMMED_MEAN, mix=True),
    "mean, without outliers": AggregationSettings(drop=3.0),
    "median, without outliers": AggregationSettings(Rule.MEDIAN, drop=3.0),
    "trimmed-mean, without outliers": AggregationSettings(Rule.TRIMMED_MEAN, drop=3.0),
    "mean, clipped, without outliers": AggregationSettings(clip=1.0, drop=3.0),
}


def turned(client: int, update: Update) -> Update:
    """The sign of an attacker's update turned, ten times as large, within int8 and int32."""
    if client not in ATTACKERS:
        return update
    deltas: dict[int, NDArray[np.int32]] = {}
    for index, delta in update.deltas.items():
        before = update.model.array(index)
        limits = np.iinfo(np.int8 if before.dtype == np.int8 else np.int32)
        wanted = before.astype(np.int64) - FACTOR * delta.astype(np.int64)
        sent: NDArray[np.int64] = np.clip(wanted, limits.min, limits.max) - before.astype(np.int64)
        deltas[index] = sent.astype(np.int32)
    ranges = tuple(
        ActivationRange(each.index, FACTOR * each.low, FACTOR * each.high, 1.0)
        for each in update.ranges
    )
    return Update(deltas, ranges, update.model)


def accuracy(rule: str, seed: int, rounds: int, *, attacked: bool) -> float:
    """Of the last rounds, 0..1, judged by the interpreter."""
    x, y = load_train()
    shards = [(x[part], y[part]) for part in dirichlet_split(y, 10, 0.5, seed)]
    setting = Setting(seed, LEARNING_RATE, rounds=rounds)
    results = run(
        Model.parse(MODEL_PATH.read_bytes()).data,
        shards,
        load_test(),
        setting,
        aggregation=RULES[rule],
        tamper=turned if attacked else honest,
    )
    return fmean([each.accuracy for each in results][-LAST_ROUNDS:])


def main() -> int:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.robust", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/robust.json"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    parser.add_argument("--only", choices=list(RULES), action="append", help="may be repeated")
    options = parser.parse_args()
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"  # the processes share the cores
    began = time.monotonic()
    found: dict[str, dict[str, list[float]]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        running = {
            pool.submit(accuracy, rule, seed, options.rounds, attacked=attacked): (rule, attacked)
            for rule in options.only or RULES
            for seed in SEEDS
            for attacked in (False, True)
        }
        for done in as_completed(running):
            rule, attacked = running[done]
            key = "attacked" if attacked else "clean"
            found.setdefault(rule, {}).setdefault(key, []).append(round(done.result(), 4))
            print(f"{rule}, {key}: {done.result():.1%}", file=sys.stderr, flush=True)
    print(f"{'rule':34}  clean  attacked  lost to the clean mean")
    best = fmean(found["mean"]["clean"]) if "mean" in found else float("nan")
    rules = {}
    for rule, values in found.items():
        clean, hurt = fmean(values["clean"]), fmean(values["attacked"])
        rules[rule] = {
            "clean": round(clean, 4),
            "attacked": round(hurt, 4),
            "lost": round(best - hurt, 4),
            **{f"{key}_by_run": sorted(each) for key, each in values.items()},
        }
        print(f"{rule:34}  {clean:5.1%}  {hurt:8.1%}  {best - hurt:22.1%}")
    document = {
        "rules": rules,
        "devices": 10,
        "hostile": len(ATTACKERS),
        "rounds": options.rounds,
        "seeds": SEEDS,
        "seconds": round(time.monotonic() - began, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
