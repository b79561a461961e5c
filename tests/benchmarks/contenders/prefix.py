# SPDX-License-Identifier: Apache-2.0
"""The frozen part, which runs once a training: by our layers, and by the interpreter."""

from __future__ import annotations

import time
from pathlib import Path

from tests.benchmarks.case import Case


def run(case: Case, data: Path, epochs: int) -> dict[str, object]:
    """Samples by second of CPU time, of each; they alternate, `epochs` times."""
    from fedlearn.dataset import Dataset
    from fedlearn.model import Model
    from fedlearn.runtime import Session
    from fedlearn.trainer.prefix import Prefix
    from fedlearn.trainer.tail import Tail
    from fedlearn.trainer.tails import trainable_tensors

    model = Model.parse(case.model.read_bytes())
    inputs = Dataset.load(data, model).inputs
    tail = Tail(model, [each.index for each in trainable_tensors(model, str(case.layers))])
    prefix = Prefix(model, tail.entries, inputs, batch=len(inputs))
    if prefix.unpinned:
        raise RuntimeError(prefix.unpinned)
    session = Session(model.cut(tail.entries))
    spent = {"ours": 0.0, "interpreter": 0.0}
    for _ in range(epochs):
        for name, call in (("ours", prefix.features), ("interpreter", session.run_all)):
            start_s = time.process_time()
            call(inputs)
            spent[name] += time.process_time() - start_s
    return {name: round(epochs * len(inputs) / cpu_s, 1) for name, cpu_s in spent.items()}
