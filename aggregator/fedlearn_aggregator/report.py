# SPDX-License-Identifier: Apache-2.0
"""Rounds as people and scripts see them: the rows of `/v1/status`, `rounds` and `status`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedlearn_aggregator import schema, store
from fedlearn_aggregator.rounds import FINAL
from fedlearn_aggregator.store import EvaluationRow, RoundRow
from fedlearn_aggregator.summary import MeanMetrics
from fedlearn_aggregator.tally import LISTED, Tally

# Rounds in `/v1/status`; `rounds` shows all.
STATUS_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One round. Digests in hexadecimal, times in Unix seconds.

    `wall_s` runs from the first seat to the end. `accuracy` and `loss` are those of the new model
    by the interpreter, as soon as they are known; `base_` those of the model it began with.

    Lists hold at most the first `tally.LISTED` entries. `devices` is empty when the round's updates
    are no longer kept. `bytes_up` are bodies of updates; `bytes_down` are whole answers with the
    base model, as file or difference, known when the round has ended.
    """

    number: int
    state: str
    base: str
    result: str | None
    updates: int
    devices: tuple[str, ...]
    samples: int
    bytes_up: tuple[int, ...]
    bytes_up_total: int
    bytes_down: tuple[int, ...]
    bytes_down_total: int
    downloads: int
    opened: float
    started: float | None
    closed: float | None
    wall_s: float | None
    slowest_train_s: float | None
    metrics: MeanMetrics | None
    accuracy: float | None
    loss: float | None
    base_accuracy: float | None
    base_loss: float | None


@dataclass(frozen=True, slots=True)
class TaskReport:
    """The task and its rounds."""

    task: str
    state: str  # "running" or "finished"
    round: int
    rounds_closed: int
    max_rounds: int
    cohort: int
    model: str
    model_bytes: int
    parameters: int
    optimizer: str
    aggregation: str
    rounds: tuple[RoundReport, ...]

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return asdict(self)


def read(path: Path, last: int | None = None) -> TaskReport:
    """`report` on a connection of its own, beside a running `serve` or without one."""
    with closing(schema.open_reader(path)) as db:
        try:
            # One transaction: a round that closes meanwhile is seen whole or not at all.
            db.execute("BEGIN")
            return report(db, last)
        except sqlite3.Error as error:
            raise schema.storage_error(error, path) from error


def report(db: sqlite3.Connection, last: int | None = None) -> TaskReport:
    """The task with its `last` rounds, or all that are kept, oldest first."""
    task = store.load_task(db)
    evaluations = store.load_evaluations(db)
    rows = store.load_rounds(db, last)
    reports = tuple(_round(db, row, evaluations) for row in rows)
    newest = rows[-1]
    model = newest.result or newest.base
    return TaskReport(
        task=task.name,
        state="finished" if newest.state in FINAL else "running",
        round=newest.number,
        rounds_closed=newest.closed_before + (newest.result is not None),
        max_rounds=task.policy.max_rounds,
        cohort=task.policy.cohort,
        model=model.hex(),
        model_bytes=store.model_size(db, model),
        parameters=task.parameters,
        optimizer=task.optimizer.name,
        aggregation=task.aggregation.words,
        rounds=reports,
    )


def _round(
    db: sqlite3.Connection, row: RoundRow, evaluations: dict[bytes, EvaluationRow]
) -> RoundReport:
    after = evaluations.get(row.result) if row.result else None
    before = evaluations.get(row.base)
    ended = row.closed is not None and row.started is not None
    # Only the newest round has none yet.
    summary = row.summary or store.summarise(db, row.number, Tally())
    return RoundReport(
        number=row.number,
        state=row.state,
        base=row.base.hex(),
        result=row.result.hex() if row.result else None,
        updates=summary.updates,
        devices=tuple(store.load_devices(db, row.number, LISTED)),
        samples=summary.samples,
        bytes_up=summary.bytes_up.first,
        bytes_up_total=summary.bytes_up.total,
        bytes_down=summary.bytes_down.first,
        bytes_down_total=summary.bytes_down.total,
        downloads=summary.bytes_down.count,
        opened=row.opens,
        started=row.started,
        closed=row.closed,
        wall_s=(row.closed or 0.0) - (row.started or 0.0) if ended else None,
        slowest_train_s=summary.slowest_train_s,
        metrics=summary.metrics,
        accuracy=after.accuracy if after else None,
        loss=after.loss if after else None,
        base_accuracy=before.accuracy if before else None,
        base_loss=before.loss if before else None,
    )
