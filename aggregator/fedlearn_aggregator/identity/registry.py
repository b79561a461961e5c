# SPDX-License-Identifier: Apache-2.0
"""Tokens and devices, in an SQLite file of their own.

Of a token only the SHA-256 is kept: it has 192 random bits, so nothing slower is needed. A device
is known by the SHA-256 of its public key, which stays the same from one certificate to the next;
what is blocked or removed counts from the next request on. Several processes may use the file:
`serve`, and the commands that a person gives meanwhile.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedlearn.errors import ConfigError, ProtocolError
from fedlearn_aggregator.schema import storage_error

FILE_NAME = "registry.sqlite"
VERSION = 1
TOKEN_BYTES = 24
# A token that has expired is remembered so long, to say that it has.
FORGET_DAYS = 90
_BUSY_TIMEOUT_S = 10.0
DAY_S = 86400.0

# Times are Unix seconds. `token` is that with which the device came.
_TABLES = """
CREATE TABLE tokens (
    digest BLOB PRIMARY KEY,
    expires REAL NOT NULL,
    uses INTEGER NOT NULL,
    device TEXT
);
CREATE TABLE devices (
    name TEXT PRIMARY KEY,
    key BLOB NOT NULL,
    token BLOB NOT NULL,
    label TEXT NOT NULL DEFAULT '',
    blocked INTEGER NOT NULL DEFAULT 0,
    enrolled REAL NOT NULL,
    expires REAL NOT NULL,
    seen REAL
);
CREATE TABLE server_names (name TEXT PRIMARY KEY);
"""


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled device. Times are Unix seconds; `expires` is that of its newest certificate."""

    name: str
    key: bytes
    label: str
    blocked: bool
    enrolled: float
    expires: float
    seen: float | None


class Registry:
    """An open file. Its methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it. Raises StorageError."""
        self._path = path
        self._lock = threading.Lock()
        with self._errors():
            self._db = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            # Several processes write, rarely: the rollback journal has no checkpoints to lose.
            self._db.execute("PRAGMA journal_mode=TRUNCATE")
            self._db.execute("PRAGMA synchronous=FULL")
            with self._transaction():
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in _TABLES.split(";\n"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version={VERSION:d}")
        if version > VERSION:
            raise ConfigError(
                f"{path} was written by a newer fedlearn", hint="install that version again"
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def change(self) -> int:
        """A number that is another one after a change by another process (PRAGMA data_version)."""
        with self._errors(), self._lock:
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def devices(self) -> list[Device]:
        """All that are enrolled, by name."""
        with self._errors(), self._lock:
            rows = self._db.execute(
                "SELECT name, key, label, blocked, enrolled, expires, seen FROM devices "
                "ORDER BY name"
            ).fetchall()
        return [
            Device(name, key, label, bool(blocked), enrolled, expires, seen)
            for name, key, label, blocked, enrolled, expires, seen in rows
        ]

    def server_names(self) -> list[str]:
        """What the server's certificate is to name, beside what the machine is called."""
        with self._errors(), self._lock:
            return [row[0] for row in self._db.execute("SELECT name FROM server_names")]

    def add_server_names(self, names: Sequence[str]) -> None:
        """Add names or IP addresses."""
        with self._errors(), self._transaction():
            for name in names:
                self._db.execute("INSERT OR IGNORE INTO server_names VALUES (?)", (name,))

    def add_tokens(
        self, count: int, expires: float, now: float, *, uses: int = 1, device: str | None = None
    ) -> list[str]:
        """Make tokens, each for `uses` enrolments; one for a `device` may replace its key."""
        tokens = [secrets.token_urlsafe(TOKEN_BYTES) for _ in range(count)]
        with self._errors(), self._transaction():
            forget = now - FORGET_DAYS * DAY_S
            self._db.execute("DELETE FROM tokens WHERE expires < ?", (forget,))
            for token in tokens:
                self._db.execute(
                    "INSERT INTO tokens VALUES (?, ?, ?, ?)",
                    (digest_of(token), expires, uses, device),
                )
        return tokens

    def unused_tokens(self, now: float) -> int:
        """How many could still be used."""
        with self._errors(), self._lock:
            query = "SELECT count(*) FROM tokens WHERE uses > 0 AND expires > ?"
            return int(self._db.execute(query, (now,)).fetchone()[0])

    def enrol(self, device: str, key: bytes, token: str, now: float, expires: float) -> None:
        """Take the device in, and use the token up.

        The same device with the same key and token may come again: an answer can be lost on its
        way. Raises ProtocolError 401 for the token, 403 for a blocked device, 409 for a name that
        another key has.
        """
        digest = digest_of(token)
        with self._errors(), self._transaction():
            found = self._db.execute(
                "SELECT expires, uses, device FROM tokens WHERE digest = ?", (digest,)
            ).fetchone()
            if found is None:
                raise _bad_token("is not known here")
            token_expires, uses, bound = found
            if token_expires <= now:
                raise _bad_token("has expired")
            if bound is not None and bound != device:
                raise _bad_token("is for another device")
            known = self._db.execute(
                "SELECT key, token, blocked FROM devices WHERE name = ?", (device,)
            ).fetchone()
            if known is not None and known[2]:
                raise ProtocolError("this device is blocked", status=403, hint=_ASK)
            again = known is not None and known[0] == key and known[1] == digest
            if not again and uses < 1:
                raise _bad_token("was used already")
            if known is not None and known[0] != key and bound is None:
                raise ProtocolError(
                    "another device has this name",
                    status=409,
                    hint=f"if it is this one, with a new key: fedlearn-aggregator tokens --device "
                    f"{device}; else give each device a name of its own, or remove the old one",
                )
            if not again:
                self._db.execute("UPDATE tokens SET uses = uses - 1 WHERE digest = ?", (digest,))
            self._db.execute(
                "INSERT INTO devices (name, key, token, enrolled, expires, seen) "
                "VALUES (?1, ?2, ?3, ?4, ?5, ?4) "
                "ON CONFLICT (name) DO UPDATE SET key = excluded.key, token = excluded.token, "
                "enrolled = excluded.enrolled, expires = excluded.expires, seen = excluded.seen",
                (device, key, digest, now, expires),
            )

    def renewed(self, device: str, expires: float) -> None:
        """Note that a device has a newer certificate."""
        with self._errors(), self._transaction():
            self._db.execute("UPDATE devices SET expires = ? WHERE name = ?", (expires, device))

    def saw(self, times: Mapping[str, float]) -> None:
        """Note when devices were heard of last."""
        with self._errors(), self._transaction():
            for device, seen in times.items():
                self._db.execute("UPDATE devices SET seen = ? WHERE name = ?", (seen, device))

    def label(self, device: str, label: str) -> None:
        """Say what the device is, for people. Raises ConfigError when it is not known."""
        self._change(device, "UPDATE devices SET label = ?2 WHERE name = ?1", label)

    def block(self, device: str, *, blocked: bool) -> None:
        """Shut the device out, or let it in again. Raises ConfigError when it is not known."""
        self._change(device, "UPDATE devices SET blocked = ?2 WHERE name = ?1", blocked)

    def remove(self, device: str) -> None:
        """Forget the device and its key. Raises ConfigError when it is not known."""
        self._change(device, "DELETE FROM devices WHERE name = ?1")

    def _change(self, device: str, statement: str, *values: object) -> None:
        with self._errors(), self._transaction():
            changed = self._db.execute(statement, (device, *values)).rowcount
        if not changed:
            raise ConfigError(
                f"there is no device {device}", hint="the devices command lists those there are"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise storage_error(error, self._path) from error


_ASK = "ask who runs the aggregator"


def digest_of(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


def _bad_token(what: str) -> ProtocolError:
    return ProtocolError(
        f"the token {what}",
        status=401,
        hint="put a new one into the device's token file: fedlearn-aggregator tokens makes it",
    )
