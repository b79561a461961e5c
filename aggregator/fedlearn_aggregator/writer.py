# SPDX-License-Identifier: Apache-2.0
"""The one thread that owns the database connection, and its group commit.

What is waiting when a transaction begins goes into it together, up to a limit, and every caller
gets its answer only after the commit has returned. So ten updates that arrive at once cost one
fsync, and an answer always means "on disk". When the transaction fails (disk full, I/O error),
all of it is rolled back and each caller is told; the connection stays usable for the next one.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Concatenate, ParamSpec, TypeVar

from fedlearn_aggregator import schema

P = ParamSpec("P")
T = TypeVar("T")

# Keeps a transaction, and what a failed one takes down with it, to some megabytes.
MAX_BATCH = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[sqlite3.Connection], Any]
    future: Future[Any]


class Writer:
    """Runs functions of `store` on the database, in order."""

    def __init__(self, path: Path) -> None:
        """Open the file; raises StorageError or ConfigError."""
        self._path = path
        self._db = schema.open_writer(path)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)
        self._thread.start()

    async def do(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call `function(connection, ...)` within a transaction; return after its commit.

        Raises StorageError when the disk refuses; then nothing of the call is kept. A caller that
        is cancelled while it waits does not stop the call.
        """
        future: Future[T] = Future()
        self._jobs.put(_Job(lambda db: function(db, *args, **kwargs), future))
        return await asyncio.shield(asyncio.wrap_future(future))

    def close(self) -> None:
        """Finish what is waiting and close the file."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        closing = False
        while not closing:
            waiting = [self._jobs.get()]
            while len(waiting) < MAX_BATCH:
                try:
                    waiting.append(self._jobs.get_nowait())
                except Empty:
                    break
            closing = None in waiting
            batch = [job for job in waiting if job is not None]
            if batch:
                self._commit(batch)
        self._db.close()

    def _commit(self, batch: list[_Job]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            outcomes = [self._run(job) for job in batch]
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            failure = schema.storage_error(error, self._path)
            _log.error("nothing was stored: %s", failure)
            # A full disk ends the transaction by itself, an error of COMMIT leaves it open.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            outcomes = [failure] * len(batch)
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)

    def _run(self, job: _Job) -> Any:
        """The call's result, or its exception if that concerns this call alone."""
        self._db.execute("SAVEPOINT job")
        try:
            result = job.run(self._db)
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
                raise  # the disk: the whole transaction fails
            self._db.execute("ROLLBACK TO job")
            result = error
        self._db.execute("RELEASE job")
        return result
