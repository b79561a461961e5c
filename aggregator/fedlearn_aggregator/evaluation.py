# SPDX-License-Identifier: Apache-2.0
"""Judges new models by the real interpreter, beside the rounds and never in their way."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future

from fedlearn.dataset import Dataset
from fedlearn.errors import FedlearnError
from fedlearn.evaluation import Evaluation, evaluate
from fedlearn_aggregator import store
from fedlearn_aggregator.store import EvaluationRow
from fedlearn_aggregator.writer import Writer

_log = logging.getLogger(__name__)


class Evaluator:
    """Evaluates models of the store one after the other, in the order they came."""

    def __init__(self, dataset: Dataset, loss: str, writer: Writer) -> None:
        """`dataset`, with labels for `loss`, stays in memory."""
        self._dataset = dataset
        self._loss = loss
        self._writer = writer
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()

    def submit(self, digest: bytes) -> None:
        """Queue a model."""
        self._queue.put_nowait(digest)

    async def drain(self) -> None:
        """Wait until everything queued is evaluated."""
        await self._queue.join()

    async def run(self) -> None:
        """Evaluate what no earlier run has evaluated, then whatever is submitted."""
        try:
            for digest in await self._writer.do(store.unevaluated):
                self.submit(digest)
        except FedlearnError as error:
            # The models to come are evaluated all the same, and nobody waits for these.
            _log.error("earlier models are not evaluated: %s", error)
        while True:
            digest = await self._queue.get()
            try:
                await self._evaluate(digest)
            except FedlearnError as error:
                _log.error("model %s was not evaluated: %s", digest.hex()[:12], error)
            except Exception:
                _log.exception("model %s was not evaluated", digest.hex()[:12])
            finally:
                self._queue.task_done()

    async def _evaluate(self, digest: bytes) -> None:
        data = await self._writer.do(store.load_model, digest)
        if data is None:
            return  # overtaken: too many rounds old to be kept
        result = await self._in_thread(data)
        row = EvaluationRow(result.accuracy, result.loss, result.samples)
        await self._writer.do(store.add_evaluation, digest, row)
        _log.info(
            "model %s: %sloss %.4f on %d samples",
            digest.hex()[:12],
            "" if row.accuracy is None else f"accuracy {row.accuracy:.4f}, ",
            row.loss,
            row.samples,
        )

    async def _in_thread(self, data: bytes) -> Evaluation:
        # Not asyncio.to_thread: the end of the process would wait for such a thread, and a large
        # test set takes minutes.
        future: Future[Evaluation] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(evaluate(data, self._dataset, loss=self._loss))
                except Exception as error:
                    future.set_exception(error)

        threading.Thread(target=work, name="evaluation", daemon=True).start()
        return await asyncio.wrap_future(future)
