# SPDX-License-Identifier: Apache-2.0
"""The SQLite file of a data directory: its tables, and how it is opened.

WAL with synchronous=FULL: a commit that returned is on the disk, also after a power cut. Only
`serve` writes, by one connection on one thread, which also does all checkpoints. (SQLite before
3.51.3 can lose a commit when several connections write and checkpoint; distributions ship older
ones.) Other commands open the file read-only.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from fedlearn.errors import ConfigError, StorageError

FILE_NAME = "aggregator.sqlite"
# A change of the tables raises this number and adds a step that takes older files along.
VERSION = 2
# A reader never blocks a writer in WAL mode; this covers the moments in which the log is reset.
BUSY_TIMEOUT_S = 5.0
# The write-ahead log is cut to this length after a checkpoint; it grows with one large model.
LOG_BYTES = 8 * 1024 * 1024

# Times are Unix seconds, digests SHA-256. Metrics and summaries are JSON: only ever
# read whole. A round has its summary from its end on; its seats and updates go some rounds later.
_TABLES = """
CREATE TABLE task (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    settings TEXT NOT NULL
);
CREATE TABLE models (
    digest BLOB PRIMARY KEY,
    data BLOB NOT NULL
);
CREATE TABLE rounds (
    number INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    closed_before INTEGER NOT NULL,
    base BLOB NOT NULL,
    result BLOB,
    opens REAL NOT NULL,
    started REAL,
    closed REAL,
    summary TEXT
);
CREATE TABLE seats (
    round INTEGER NOT NULL REFERENCES rounds(number) ON DELETE CASCADE,
    device TEXT NOT NULL,
    failed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (round, device)
) WITHOUT ROWID;
CREATE TABLE updates (
    round INTEGER NOT NULL REFERENCES rounds(number) ON DELETE CASCADE,
    device TEXT NOT NULL,
    digest BLOB NOT NULL,
    samples INTEGER NOT NULL,
    metrics TEXT NOT NULL,
    received REAL NOT NULL,
    body_bytes INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (round, device)
);
CREATE TABLE arrays (
    slot TEXT NOT NULL,
    tensor INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (slot, tensor)
);
CREATE TABLE evaluations (
    model BLOB PRIMARY KEY,
    accuracy REAL,
    loss REAL NOT NULL,
    samples INTEGER NOT NULL
);
"""

# By the version that a step starts from. A reader needs none of them: it reads both.
_STEPS = {
    1: """
CREATE TABLE evaluations_2 (
    model BLOB PRIMARY KEY,
    accuracy REAL,
    loss REAL NOT NULL,
    samples INTEGER NOT NULL
);
INSERT INTO evaluations_2 SELECT * FROM evaluations;
DROP TABLE evaluations;
ALTER TABLE evaluations_2 RENAME TO evaluations;
"""
}


def create(path: Path) -> sqlite3.Connection:
    """Make a new file with empty tables; the caller commits when the task is in it."""
    db = _connect(f"{path.absolute().as_uri()}?mode=rwc", path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";\n"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version={VERSION:d}")
    return db


def open_writer(path: Path) -> sqlite3.Connection:
    """Open an existing file for the one thread that writes; an older one is taken along."""
    db = _checked(_connect(f"{path.absolute().as_uri()}?mode=rw", path), path)
    try:
        _take_along(db)
    except sqlite3.Error as error:
        db.close()
        raise storage_error(error, path) from error
    return db


def _take_along(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    for each in range(version, VERSION):
        for statement in _STEPS[each].split(";\n"):
            db.execute(statement)
    db.execute(f"PRAGMA user_version={VERSION:d}")
    db.execute("COMMIT")


def open_reader(path: Path) -> sqlite3.Connection:
    """Open an existing file to read only, beside a running `serve` or without one."""
    return _checked(_connect(f"{path.absolute().as_uri()}?mode=ro", path), path)


def require(path: Path) -> None:
    """Raise ConfigError unless the file is there."""
    if not path.exists():
        raise ConfigError(
            f"{path.parent} holds no task",
            hint="make one with: fedlearn-aggregator init --data-dir DIR --task NAME --model FILE",
        )


def _connect(uri: str, path: Path) -> sqlite3.Connection:
    if "mode=rwc" not in uri:
        require(path)
    try:
        # Connected here, used by the writer's thread alone.
        db = sqlite3.connect(
            uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise storage_error(error, path) from error
    try:
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA foreign_keys=ON")
        db.execute(f"PRAGMA journal_size_limit={LOG_BYTES:d}")
    except sqlite3.Error as error:
        db.close()
        raise storage_error(error, path) from error
    return db


def _checked(db: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except sqlite3.Error as error:
        db.close()
        raise storage_error(error, path) from error
    if (version == VERSION or version in _STEPS) and tables:
        return db
    db.close()
    if version > VERSION:
        raise StorageError(
            f"{path} was written by a newer fedlearn (schema {version}, this one knows {VERSION})",
            hint="install that version again, or start a task in another directory",
        )
    raise StorageError(
        f"{path} holds no complete task", hint="move the file away and run init again"
    )


def storage_error(error: sqlite3.Error, path: Path) -> StorageError:
    """A sentence for what SQLite says."""
    hint = {
        "SQLITE_FULL": "the disk is full: free some space",
        "SQLITE_NOTADB": "the file is no SQLite file: move it away, or restore a copy",
        "SQLITE_CORRUPT": "the file is damaged: restore a copy, and check the disk",
        "SQLITE_BUSY": "another program holds the file",
        "SQLITE_READONLY": "check the permissions of the directory",
        "SQLITE_CANTOPEN": "check the permissions of the directory",
    }.get(getattr(error, "sqlite_errorname", ""), "check the disk and its free space")
    return StorageError(f"{path}: {error}", hint=hint)
