# SPDX-License-Identifier: Apache-2.0
"""The one thread that owns the database connection, and its group commit.

What is waiting when a transaction begins goes into it together, up to a limit, and every caller
gets its answer only after the commit has returned. So ten updates that arrive at once cost one
fsync, and an answer always means "on disk". When the transaction fails (disk full, I/O error),
all of it is rolled back and each caller is told; the connection stays usable for the next one.
When even that is impossible the thread ends, and whoever waits or comes later is told.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Concatenate, ParamSpec, TypeVar

from fedlearn.errors import StorageError
from fedlearn_aggregator import schema

P = ParamSpec("P")
T = TypeVar("T")

# Keeps a transaction, and what a failed one takes down with it, to some megabytes.
MAX_BATCH = 64


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[sqlite3.Connection], Any]
    future: Future[Any]


class Writer:
    """Runs functions of `store` on the database, in order."""

    def __init__(self, path: Path) -> None:
        """Open the file; raises StorageError or ConfigError."""
        self.path = path
        self._db = schema.open_writer(path)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.failure: StorageError | None = None  # why nothing can be written any more
        self.broken: Future[None] = Future()  # raises `failure` as soon as there is one
        self._ending = threading.Lock()  # no job is queued while the thread gives up
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
        with self._ending:
            if self.failure is not None:
                raise self.failure
            self._jobs.put(_Job(lambda db: function(db, *args, **kwargs), future))
        return await asyncio.shield(asyncio.wrap_future(future))

    def close(self) -> None:
        """Finish what is waiting and close the file."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        batch: list[_Job] = []
        closing = False
        try:
            while not closing:
                waiting = [self._jobs.get()]
                while len(waiting) < MAX_BATCH and not self._jobs.empty():
                    waiting.append(self._jobs.get())
                closing = None in waiting
                batch = [job for job in waiting if job is not None]
                if batch:
                    self._commit(batch)
        except BaseException as error:
            self._give_up(batch, error)
        finally:
            with suppress(sqlite3.Error):
                self._db.close()

    def _commit(self, batch: list[_Job]) -> None:
        outcomes: list[Any]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            outcomes = [self._run(job) for job in batch]
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            # A full disk ends the transaction by itself, an error of COMMIT leaves it open.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            outcomes = [schema.storage_error(error, self.path)] * len(batch)
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)

    def _give_up(self, batch: list[_Job], error: BaseException) -> None:
        """Tell all callers, those to come too, that nothing can be stored any more."""
        failure = StorageError(
            f"{self.path}: the store broke: {error}", hint="check the disk, then restart serve"
        )
        with self._ending:
            self.failure = failure
        if not self.broken.done():  # whoever watched may have gone
            self.broken.set_exception(failure)
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                batch.append(job)
        for job in batch:
            if not job.future.done():
                job.future.set_exception(failure)

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
