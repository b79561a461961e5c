# SPDX-License-Identifier: Apache-2.0
"""Samples from files: one `.csv` or `.npz`, or a folder where such files are put.

A file counts as put when it has not changed for two seconds; renaming it into the folder is safer
still. Each is read once, also across restarts: what was read is in `files.json` beside the ring. An
`.npz` (`x`: samples by channels, or windows of samples by channels; `y`: a class each) is read by a
child process, which has NumPy and ends with it; it comes as the same lines of text.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, cast

from fedlearn.collect.lines import LineDecoder
from fedlearn.collect.sample import Item, SourceEnded, SourceLost
from fedlearn.collect.sequence import SequenceDecoder
from fedlearn.durable import write_durably
from fedlearn.errors import MissingFileError
from fedlearn.text import clean

ENDINGS = (".csv", ".txt", ".npz")
RECORD = "files.json"
# Names of files that were read and are still there; of more than these the oldest are forgotten.
MAX_REMEMBERED = 10_000
_SETTLED_S = 2.0
_LOOK_S = 1.0
_READ_BYTES = 16 * 1024
_CONVERTER = (sys.executable, "-I", "-m", "fedlearn.collect.npz")

logger = logging.getLogger(__name__)


class FileSource:
    """Reads `path`, or what is put into it. `decoder` makes a new decoder for each file."""

    def __init__(self, path: Path, record: Path, decoder: Callable[[], LineDecoder]) -> None:
        if not path.exists():
            raise MissingFileError(f"there is no {path}", hint="see source.path")
        self._path, self._record, self._make = path, record, decoder
        self._read = _remembered(record)
        self._decoder: LineDecoder | None = None
        self._stream: BinaryIO | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._current = ""

    def read(self, timeout_s: float) -> Iterable[Item]:
        """The next samples. Raises SourceEnded behind a single file, SourceLost for a bad one."""
        if self._stream is None and not self._begin():
            if not self._path.is_dir():
                raise SourceEnded
            time.sleep(min(timeout_s, _LOOK_S))
            return ()
        assert self._stream is not None
        assert self._decoder is not None
        data = self._stream.read(_READ_BYTES)
        if data:
            return self._decoder.feed(data)
        items = [*self._decoder.end(), None]  # no window reaches from one file into the next
        self._finish()
        return items

    def close(self) -> None:
        """Leave the file; it is read again from its beginning."""
        if self._child is not None:
            self._child.kill()
        self._leave()

    def _begin(self) -> bool:
        path = self._next()
        if path is None:
            return False
        self._current = _key(path)
        self._decoder = self._make()
        try:
            if path.suffix == ".npz":
                self._child = subprocess.Popen(
                    [*_CONVERTER, str(path)],
                    bufsize=0,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
                self._stream = cast(BinaryIO, self._child.stdout)
            else:
                self._stream = path.open("rb")
        except OSError as error:
            self._remember()
            raise SourceLost(f"cannot read {path}: {error.strerror}") from error
        logger.info("reading %s", clean(path.name))
        return True

    def _next(self) -> Path | None:
        if not self._path.is_dir():
            return self._path if _key(self._path) not in self._read else None
        now = time.time()
        entries = sorted(
            entry
            for entry in self._path.iterdir()
            if entry.suffix in ENDINGS and entry.is_file() and entry.name[0] != "."
        )
        for entry in entries:
            settled = abs(now - entry.stat().st_mtime) > _SETTLED_S
            if settled and _key(entry) not in self._read:
                return entry
        return None

    def _finish(self) -> None:
        child = self._child
        complaint = b""
        if child is not None and child.stderr is not None:
            complaint = child.stderr.read(_READ_BYTES)
        self._leave()
        self._remember()
        if complaint:
            logger.warning("%s", clean(complaint.decode(errors="replace")))

    def _leave(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._child is not None:
            if self._child.stderr is not None:
                self._child.stderr.close()
            self._child.wait()
        self._stream = self._child = self._decoder = None

    def _remember(self) -> None:
        self._read = [*self._read, self._current][-MAX_REMEMBERED:]
        write_durably(self._record, (json.dumps(self._read, indent=0) + "\n").encode())


class PipeSource:
    """Standard input, or whatever else is open for reading; it ends with it."""

    def __init__(self, handle: int, decoder: LineDecoder | SequenceDecoder) -> None:
        self._handle, self._decoder = handle, decoder

    def read(self, timeout_s: float) -> Iterable[Item]:
        """What has come within `timeout_s`. Raises SourceEnded at the end."""
        if not select.select([self._handle], [], [], timeout_s)[0]:
            return ()
        data = os.read(self._handle, _READ_BYTES)
        if data:
            return self._decoder.feed(data)
        items = self._decoder.end()
        if items:
            return items
        raise SourceEnded

    def close(self) -> None:
        """Standard input is not ours to close."""


def _key(path: Path) -> str:
    found = path.stat()
    return f"{path.name} {found.st_size} {found.st_mtime_ns}"


def _remembered(record: Path) -> list[str]:
    try:
        values = json.loads(record.read_bytes())
        return [str(each) for each in values]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s cannot be read, files may be read twice: %s", record, error)
        return []
