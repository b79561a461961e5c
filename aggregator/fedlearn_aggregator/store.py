# SPDX-License-Identifier: Apache-2.0
"""What is kept, as functions on a connection. Each is called within a transaction.

An unfinished task has exactly one round that is not final: closing or abandoning a round and
opening the next are one transaction, so a crash never leaves a gap between them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import asdict, dataclass

import numpy as np

from fedlearn.errors import ConfigError, StorageError
from fedlearn.wire.messages import Metrics
from fedlearn_aggregator.aggregation import Arrays
from fedlearn_aggregator.optimizers import ServerState
from fedlearn_aggregator.rounds import State
from fedlearn_aggregator.summary import MeanMetrics, Summary
from fedlearn_aggregator.tally import Tally
from fedlearn_aggregator.task import Task

# Rows of old rounds go after this many: a year of one every hour.
HISTORY_ROUNDS = 10_000

_SLOTS = ("master", "first", "second")


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round as it is on disk. Times are Unix seconds."""

    number: int
    state: State
    closed_before: int  # how many of the rounds before it were closed
    base: bytes
    result: bytes | None
    opens: float
    started: float | None
    closed: float | None
    summary: Summary | None  # as soon as the round has ended


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """One stored update without its body."""

    device: str
    digest: bytes
    samples: int
    metrics: Metrics
    received: float
    body_bytes: int


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """What the interpreter said about a model: accuracy 0..1 (None where the loss knows none)."""

    accuracy: float | None
    loss: float
    samples: int


def add_task(
    db: sqlite3.Connection, task: Task, model: bytes, state: ServerState, now: float
) -> None:
    """Begin a task: its starting model, master weights and round 1."""
    db.execute("INSERT INTO task VALUES (1, ?)", (task.to_json(),))
    digest = add_model(db, model)
    _put_state(db, state)
    _open_round(db, 1, 0, digest, now)


def load_task(db: sqlite3.Connection) -> Task:
    """The task; ConfigError if there is none."""
    row = db.execute("SELECT settings FROM task").fetchone()
    if row is None:
        raise ConfigError("the data directory holds no task", hint="run init first")
    return Task.from_json(row[0])


def add_model(db: sqlite3.Connection, data: bytes) -> bytes:
    """Store a model under its digest, which is returned."""
    digest = hashlib.sha256(data).digest()
    db.execute("INSERT OR IGNORE INTO models VALUES (?, ?)", (digest, data))
    return digest


def load_model(db: sqlite3.Connection, digest: bytes) -> bytes | None:
    """The bytes of a model, None if it is unknown or gone. StorageError if damaged."""
    row = db.execute("SELECT data FROM models WHERE digest = ?", (digest,)).fetchone()
    if row is None:
        return None
    data: bytes = row[0]
    if hashlib.sha256(data).digest() != digest:
        raise StorageError(f"model {digest.hex()} is damaged", hint="check the disk")
    return data


def model_size(db: sqlite3.Connection, digest: bytes) -> int:
    """Bytes of a model, 0 if it is not there."""
    row = db.execute("SELECT length(data) FROM models WHERE digest = ?", (digest,)).fetchone()
    return int(row[0]) if row else 0


def add_seat(db: sqlite3.Connection, number: int, device: str, now: float) -> None:
    """A device trains in this round; the first one starts it."""
    db.execute("INSERT OR IGNORE INTO seats (round, device) VALUES (?, ?)", (number, device))
    db.execute(
        "UPDATE rounds SET state = ?, started = ? WHERE number = ? AND state = ?",
        (State.TRAINING, now, number, State.OPEN),
    )


def fail_seat(db: sqlite3.Connection, number: int, device: str) -> None:
    """A device gave its seat back."""
    db.execute("UPDATE seats SET failed = 1 WHERE round = ? AND device = ?", (number, device))


def add_update(db: sqlite3.Connection, number: int, row: UpdateRow, body: bytes) -> None:
    """Keep an update of an unfinished round."""
    db.execute(
        "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            number,
            row.device,
            row.digest,
            row.samples,
            json.dumps(asdict(row.metrics)),
            row.received,
            row.body_bytes,
            body,
        ),
    )


def begin_aggregation(db: sqlite3.Connection, number: int) -> None:
    """From here on the round's set of updates is fixed, also after a restart."""
    db.execute("UPDATE rounds SET state = ? WHERE number = ?", (State.AGGREGATING, number))


def finish_round(
    db: sqlite3.Connection,
    task: Task,
    number: int,
    final: State,
    *,
    closed: float,
    downloads: Tally,
    next_opens: float | None,
    model: bytes | None = None,
    state: ServerState | None = None,
) -> RoundRow:
    """End a round with its new `model` and `state`, or without; open the next if `next_opens`.

    Returns the newest round: the next one, or this one if it was the last.
    """
    base, closed_before = db.execute(
        "SELECT base, closed_before FROM rounds WHERE number = ?", (number,)
    ).fetchone()
    result = None if model is None else add_model(db, model)
    if state is not None:
        _put_state(db, state)
    db.execute(
        "UPDATE rounds SET state = ?, result = ?, closed = ?, summary = ? WHERE number = ?",
        (final, result, closed, summarise(db, number, downloads).to_json(), number),
    )
    if next_opens is not None:
        closed_rounds = closed_before + (final is State.CLOSED)
        _open_round(db, number + 1, closed_rounds, result or base, next_opens)
    _drop_old(db, task, number)
    return load_rounds(db, 1)[0]


def _open_round(
    db: sqlite3.Connection, number: int, closed_before: int, base: bytes, opens: float
) -> None:
    db.execute(
        "INSERT INTO rounds (number, state, closed_before, base, opens) VALUES (?, ?, ?, ?, ?)",
        (number, State.OPEN, closed_before, base, opens),
    )


def _drop_old(db: sqlite3.Connection, task: Task, number: int) -> None:
    """Forget what the task does not keep, now that round `number` has ended."""
    for table in ("updates", "seats"):
        db.execute(f"DELETE FROM {table} WHERE round <= ?", (number - task.keep_updates,))  # noqa: S608
    db.execute("DELETE FROM rounds WHERE number <= ? AND number > 1", (number - HISTORY_ROUNDS,))
    # Closed rounds count: a night of abandoned ones must not cost the fleet all its differences.
    db.execute(
        """WITH kept AS (SELECT base, result FROM rounds WHERE result IS NOT NULL
                         ORDER BY number DESC LIMIT :keep)
           DELETE FROM models WHERE digest NOT IN (
             SELECT base FROM rounds WHERE number = 1 OR number >= :number
             UNION SELECT base FROM kept UNION SELECT result FROM kept)""",
        {"keep": task.keep_models, "number": number},
    )
    db.execute(
        """DELETE FROM evaluations WHERE model NOT IN (
             SELECT base FROM rounds UNION SELECT result FROM rounds WHERE result IS NOT NULL)"""
    )


def load_rounds(db: sqlite3.Connection, last: int | None = None) -> list[RoundRow]:
    """The `last` rounds, or all that are kept, oldest first."""
    rows = db.execute(
        """SELECT number, state, closed_before, base, result, opens, started, closed, summary
           FROM rounds ORDER BY number DESC LIMIT ?""",
        (-1 if last is None else last,),
    ).fetchall()
    return [
        RoundRow(
            number=row[0],
            state=State(row[1]),
            closed_before=row[2],
            base=row[3],
            result=row[4],
            opens=row[5],
            started=row[6],
            closed=row[7],
            summary=None if row[8] is None else Summary.from_json(row[8]),
        )
        for row in reversed(rows)
    ]


def load_seats(db: sqlite3.Connection, number: int) -> dict[str, bool]:
    """Devices that got a seat, and whether they gave it back."""
    rows = db.execute("SELECT device, failed FROM seats WHERE round = ?", (number,)).fetchall()
    return {device: bool(failed) for device, failed in rows}


def load_updates(db: sqlite3.Connection, number: int) -> list[UpdateRow]:
    """The updates of a round in the order of their arrival."""
    rows = db.execute(
        """SELECT device, digest, samples, metrics, received, body_bytes FROM updates
           WHERE round = ? ORDER BY received, device""",
        (number,),
    ).fetchall()
    return [
        UpdateRow(row[0], row[1], row[2], Metrics(**json.loads(row[3])), row[4], row[5])
        for row in rows
    ]


def summarise(db: sqlite3.Connection, number: int, downloads: Tally) -> Summary:
    """A round by its updates, of which none may be gone."""
    updates = load_updates(db, number)
    return Summary(
        updates=len(updates),
        samples=sum(update.samples for update in updates),
        bytes_up=Tally.of(update.body_bytes for update in updates),
        bytes_down=downloads,
        slowest_train_s=max((update.metrics.train_s for update in updates), default=None),
        metrics=MeanMetrics.of([update.metrics for update in updates]),
    )


def load_devices(db: sqlite3.Connection, number: int, limit: int) -> list[str]:
    """The first devices whose update of a round is kept, in the order of their arrival."""
    rows = db.execute(
        "SELECT device FROM updates WHERE round = ? ORDER BY received, device LIMIT ?",
        (number, limit),
    )
    return [device for (device,) in rows]


def load_update_digest(db: sqlite3.Connection, number: int, device: str) -> bytes | None:
    """The digest of the body that `device` sent for a round, None if none is kept."""
    row = db.execute(
        "SELECT digest FROM updates WHERE round = ? AND device = ?", (number, device)
    ).fetchone()
    return row[0] if row else None


def load_bodies(db: sqlite3.Connection, number: int) -> dict[str, bytes]:
    """The bodies of an unfinished round's updates by device. StorageError if one is damaged."""
    rows = db.execute("SELECT device, digest, body FROM updates WHERE round = ?", (number,))
    bodies = {}
    for device, digest, body in rows:
        if hashlib.sha256(body).digest() != digest:
            raise StorageError(
                f"the update of {device} for round {number} is damaged", hint="check the disk"
            )
        bodies[device] = body
    return bodies


def load_state(db: sqlite3.Connection, task: Task) -> ServerState:
    """Master weights and moments after the last closed round."""
    shapes = {tensor.index: tensor.shape for tensor in task.tensors}
    slots: dict[str, Arrays] = {slot: {} for slot in _SLOTS}
    for slot, tensor, data in db.execute("SELECT slot, tensor, data FROM arrays"):
        slots[slot][tensor] = np.frombuffer(data, "<f8").astype(np.float64).reshape(shapes[tensor])
    return ServerState(**slots)


def _put_state(db: sqlite3.Connection, state: ServerState) -> None:
    for slot in _SLOTS:
        for tensor, values in getattr(state, slot).items():
            db.execute(
                "INSERT OR REPLACE INTO arrays VALUES (?, ?, ?)",
                (slot, tensor, values.astype("<f8").tobytes()),
            )


def add_evaluation(db: sqlite3.Connection, model: bytes, row: EvaluationRow) -> None:
    """Keep what the interpreter said about a model."""
    db.execute(
        "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)",
        (model, row.accuracy, row.loss, row.samples),
    )


def load_evaluations(db: sqlite3.Connection) -> dict[bytes, EvaluationRow]:
    """All evaluations by the model's digest."""
    rows = db.execute("SELECT model, accuracy, loss, samples FROM evaluations").fetchall()
    return {row[0]: EvaluationRow(row[1], row[2], row[3]) for row in rows}


def unevaluated(db: sqlite3.Connection) -> list[bytes]:
    """Models that are kept and were never evaluated, oldest round first."""
    rows = db.execute(
        """SELECT digest FROM models WHERE digest NOT IN (SELECT model FROM evaluations)
           ORDER BY (SELECT min(number) FROM rounds WHERE base = digest) NULLS LAST"""
    ).fetchall()
    return [row[0] for row in rows]
