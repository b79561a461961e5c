# SPDX-License-Identifier: Apache-2.0
"""Rounds as people and scripts see them: the rows of `/v1/status`, `rounds` and `status`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from fedlearn.wire.messages import Metrics
from fedlearn_aggregator import store
from fedlearn_aggregator.rounds import FINAL
from fedlearn_aggregator.store import EvaluationRow, RoundRow, UpdateRow

# Rounds in `/v1/status`; `rounds` shows all.
STATUS_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class MeanMetrics:
    """Mean of the devices' own metrics, each device the same weight."""

    loss_before: float
    loss_after: float
    accuracy_before: float
    accuracy_after: float


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One round. Digests in hexadecimal, times in Unix seconds.

    `wall_s` runs from the first seat to the end. `accuracy` and `loss` are those of the new model
    by the interpreter, as soon as they are known; `base_` those of the model it began with.
    """

    number: int
    state: str
    base: str
    result: str | None
    updates: int
    devices: tuple[str, ...]
    samples: int
    bytes_up: tuple[int, ...]
    bytes_down: tuple[int, ...]
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
    rounds: tuple[RoundReport, ...]

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return asdict(self)


def report(db: sqlite3.Connection, last: int | None = None) -> TaskReport:
    """The task with its `last` rounds, or all that are kept, oldest first."""
    task = store.load_task(db)
    evaluations = store.load_evaluations(db)
    rows = store.load_rounds(db, last)
    reports = tuple(_round(row, store.load_updates(db, row.number), evaluations) for row in rows)
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
        rounds=reports,
    )


def _round(
    row: RoundRow, updates: Sequence[UpdateRow], evaluations: dict[bytes, EvaluationRow]
) -> RoundReport:
    after = evaluations.get(row.result) if row.result else None
    before = evaluations.get(row.base)
    ended = row.closed is not None and row.started is not None
    return RoundReport(
        number=row.number,
        state=row.state,
        base=row.base.hex(),
        result=row.result.hex() if row.result else None,
        updates=len(updates),
        devices=tuple(update.device for update in updates),
        samples=sum(update.samples for update in updates),
        bytes_up=tuple(update.body_bytes for update in updates),
        bytes_down=row.downloads,
        opened=row.opens,
        started=row.started,
        closed=row.closed,
        wall_s=(row.closed or 0.0) - (row.started or 0.0) if ended else None,
        slowest_train_s=max((update.metrics.train_s for update in updates), default=None),
        metrics=_mean([update.metrics for update in updates]),
        accuracy=after.accuracy if after else None,
        loss=after.loss if after else None,
        base_accuracy=before.accuracy if before else None,
        base_loss=before.loss if before else None,
    )


def _mean(metrics: Sequence[Metrics]) -> MeanMetrics | None:
    if not metrics:
        return None
    return MeanMetrics(
        loss_before=fmean(m.loss_before for m in metrics),
        loss_after=fmean(m.loss_after for m in metrics),
        accuracy_before=fmean(m.accuracy_before for m in metrics),
        accuracy_after=fmean(m.accuracy_after for m in metrics),
    )
