# SPDX-License-Identifier: Apache-2.0
"""Begins a task in a data directory."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from fedlearn.durable import publish, storage_errors, sync_directory
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.model import Model
from fedlearn_aggregator import requantise, schema, store
from fedlearn_aggregator.lock import exclusive
from fedlearn_aggregator.task import Task

# SQLite's own files beside the database; they belong together.
_PARTS = ("", "-wal", "-shm")


def begin(data_dir: Path, task: Task, model: Model, now: float, *, force: bool) -> Path | None:
    """Write the task's first state durably.

    An existing task is refused with ConfigError; with `force` it is moved aside, never deleted,
    and its new place is returned.
    """
    path = data_dir / schema.FILE_NAME
    with storage_errors("write", data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        with exclusive(data_dir):
            if path.exists() and not force:
                raise ConfigError(
                    f"{data_dir} holds a task already",
                    hint="take another --data-dir; --force moves the old task aside",
                )
            draft = path.with_suffix(".new")
            _remove(draft)
            _write(draft, task, model, now)
            moved = _move_aside(path)
            publish(draft, path)
    return moved


def _write(path: Path, task: Task, model: Model, now: float) -> None:
    try:
        db = schema.create(path)
        try:
            store.add_task(db, task, model.data, requantise.first_state(model, task.tensors), now)
            db.execute("COMMIT")
        finally:
            # The last connection takes the write-ahead log into the file and removes it.
            db.close()
    except sqlite3.Error as error:
        _remove(path)
        raise schema.storage_error(error, path) from error


def _move_aside(path: Path) -> Path | None:
    """Free the name `path` durably; returns where the old file is, None if there was none.

    SQLite replays whatever log it finds beside a file, also into a new file that got the name of
    a lost one. So the log goes into the old file first, and if that cannot be, or only a log is
    left, the log is moved aside too, before anything else can get the name.
    """
    if path.exists():
        # Best effort: a damaged file is moved as it is. A writer would delete its log on closing,
        # so a reader looks first.
        with suppress(FedlearnError, sqlite3.Error):
            schema.open_reader(path).close()
            with closing(schema.open_writer(path)) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    found = [part for part in _PARTS if _part(path, part).exists()]
    if not found:
        return None
    number = 1
    while any(_part(_aside(path, number), part).exists() for part in _PARTS):
        number += 1
    target = _aside(path, number)
    for part in found:
        _part(path, part).replace(_part(target, part))
    sync_directory(path.parent)
    return target if "" in found else None


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}.old")


def _part(path: Path, part: str) -> Path:
    return path.with_name(path.name + part)


def _remove(path: Path) -> None:
    for part in _PARTS:
        _part(path, part).unlink(missing_ok=True)
