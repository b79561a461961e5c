# SPDX-License-Identifier: Apache-2.0
"""Evaluation beside the rounds: nobody waits for what will not come."""

import asyncio
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fedlearn.dataset import Dataset
from fedlearn_aggregator import store
from fedlearn_aggregator.evaluation import Evaluator
from fedlearn_aggregator.rounds import Policy
from tests.aggregator.devices import start_model
from tests.aggregator.service import make_task, service


@pytest.mark.parametrize("failing", [False, True])
def test_a_first_read_that_fails_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    def fail(_db: sqlite3.Connection) -> list[bytes]:
        raise sqlite3.OperationalError("disk I/O error")

    async def scenario() -> None:
        np.savez(tmp_path / "test.npz", x=np.zeros((8, 28, 28), np.uint8), y=np.arange(8))
        dataset = Dataset.load(tmp_path / "test.npz", start_model())
        async with service(tmp_path, make_task(Policy(1, 1))) as running:
            if failing:
                monkeypatch.setattr(store, "unevaluated", fail)
            evaluator = Evaluator(dataset, "softmax_cross_entropy", running.writer)
            digest = start_model().digest
            evaluator.submit(digest)
            task = asyncio.create_task(evaluator.run())
            await evaluator.drain()
            assert digest in await running.writer.do(store.load_evaluations)
            assert not task.done()
            task.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 60))
