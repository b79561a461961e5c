# SPDX-License-Identifier: Apache-2.0
"""One process at a time owns a data directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlearn.durable import storage_errors
from fedlearn.errors import StorageError

_FILE = "lock"


@contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Hold the directory's lock; StorageError if another process does.

    The kernel frees it when the process ends, however it ends. The file stays: removing it would
    let two processes lock two files of the same name.
    """
    with storage_errors("open", data_dir / _FILE):
        handle = os.open(data_dir / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise StorageError(
            f"{data_dir} is in use by another fedlearn-aggregator",
            hint="stop it first, or take another --data-dir",
        ) from error
    try:
        yield
    finally:
        os.close(handle)
