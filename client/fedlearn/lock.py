# SPDX-License-Identifier: Apache-2.0
"""One process at a time owns a directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fedlearn.durable import storage_errors
from fedlearn.errors import StorageError


def take(directory: Path, refusal: StorageError) -> int:
    """Lock a directory through its file `lock`; raise `refusal` if another process has it.

    Closing the file descriptor that comes back frees it, and so does the kernel when the process
    ends, however it ends. The file stays: removing it would let two processes lock two files of
    the same name.
    """
    path = directory / "lock"
    with storage_errors("open", path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise refusal from None
    return handle
