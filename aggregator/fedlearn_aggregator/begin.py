# SPDX-License-Identifier: Apache-2.0
"""Begins a task in a data directory."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from fedlearn.errors import ConfigError, ModelError, StorageError
from fedlearn.model import Model
from fedlearn_aggregator import requantise, schema, store
from fedlearn_aggregator.lock import exclusive
from fedlearn_aggregator.task import Task

# SQLite's own files beside the database; they belong together.
_PARTS = ("", "-wal", "-shm")


def read_model(path: Path) -> Model:
    """Parse a `.tflite`; ModelError says what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}", hint="check --model") from error
    return Model.parse(data)


def begin(data_dir: Path, task: Task, model: Model, now: float, *, force: bool) -> Path | None:
    """Write the task's first state durably.

    An existing task is refused with ConfigError; with `force` it is moved aside, never deleted,
    and its new place is returned.
    """
    path = data_dir / schema.FILE_NAME
    try:
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
            moved = _move_aside(path) if path.exists() else None
            draft.replace(path)
            _sync(data_dir)
    except OSError as error:
        raise StorageError(f"{data_dir}: {error.strerror}", hint="check the disk") from error
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


def _move_aside(path: Path) -> Path:
    number = 1
    while (target := path.with_name(f"{path.name}.{number}.old")).exists():
        number += 1
    for part in _PARTS:
        source = path.with_name(path.name + part)
        if source.exists():
            source.replace(target.with_name(target.name + part))
    return target


def _remove(path: Path) -> None:
    for part in _PARTS:
        path.with_name(path.name + part).unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
