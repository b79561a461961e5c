# SPDX-License-Identifier: Apache-2.0
"""Where our trainer's time goes: no contender, but run like one."""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from pathlib import Path
from typing import Any

from fedlearn.trainer.lean import import_lean
from tests.benchmarks.case import BATCH, LEARNING_RATE, SEED, Case

# Functions that take at least this share of the time are listed.
_LEAST_SHARE = 0.005


def run(case: Case, data: Path, epochs: int) -> dict[str, object]:
    """Train with the matrix products on a watch, then again under cProfile."""
    import_lean()
    from fedlearn.dataset import Dataset
    from fedlearn.errors import UnsupportedOperatorError
    from fedlearn.model import Model
    from fedlearn.trainer.tails import trainable_tensors
    from fedlearn.trainer.training import train
    from fedlearn.wire.messages import TrainingPlan

    model = Model.parse(case.model.read_bytes())
    try:
        tensors = [tensor.index for tensor in trainable_tensors(model, str(case.layers))]
    except UnsupportedOperatorError as error:
        return {"absent": error.message}
    samples = Dataset.load(data, model)
    plan = TrainingPlan("softmax_cross_entropy", epochs, BATCH, LEARNING_RATE)

    def go(progress: Any) -> None:
        train(model, tensors, samples, plan, seed=SEED, progress=progress)

    watch = Watch()
    try:
        go(watch)
    finally:
        watch.take_off()
    profiler = cProfile.Profile()

    def first_step_done(_epoch: int, _done: float, _loss: float) -> None:
        profiler.enable()  # does nothing when it is enabled

    try:
        go(first_step_done)
    finally:
        profiler.disable()
    return {"blas_share": watch.share(), "functions": _split(profiler)}


class Watch:
    """Puts a stop-watch on `exact.product`, through which every matrix product goes.

    It holds the products themselves and, where a sum of more than 514 terms is cut into blocks, the
    additions of the blocks.
    """

    def __init__(self) -> None:
        from fedlearn.trainer import exact

        self._inside_s = 0.0
        # Time, and time inside, at the first step and at the last one: what runs later is not ours.
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)
        self._product = product = exact.product

        def timed(a: Any, b: Any) -> Any:
            start = time.perf_counter()
            result = product(a, b)
            self._inside_s += time.perf_counter() - start
            return result

        self._users = [
            module
            for name, module in list(sys.modules.items())
            if name.startswith("fedlearn.") and getattr(module, "product", None) is product
        ]
        for module in self._users:
            vars(module)["product"] = timed

    def take_off(self) -> None:
        """Leave the products as they were."""
        for module in self._users:
            vars(module)["product"] = self._product

    def __call__(self, _epoch: int, _done: float, _loss: float) -> None:
        self._last = (time.perf_counter(), self._inside_s)
        if self._first is None:
            self._first = self._last

    def share(self) -> float:
        """Of the time between the first step and the last one."""
        assert self._first is not None
        (start_s, inside_at_start_s), (end_s, inside_at_end_s) = self._first, self._last
        return (inside_at_end_s - inside_at_start_s) / (end_s - start_s)


def _split(profiler: cProfile.Profile) -> list[dict[str, object]]:
    """Share of the time inside each function itself, without those it calls; largest first."""
    stats: Any = pstats.Stats(profiler)
    rows = [
        (own_s / stats.total_tt, calls, f"{_place(file)}{function}")
        for (file, _, function), (_, calls, own_s, *_) in stats.stats.items()
    ]
    return [
        {"function": function, "calls": calls, "share": round(share, 4)}
        for share, calls, function in sorted(rows, reverse=True)
        if share >= _LEAST_SHARE
    ]


def _place(file: str) -> str:
    """The module of a Python function, nothing for what is built in."""
    return "" if file == "~" else f"{Path(file).stem}."
