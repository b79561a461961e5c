# SPDX-License-Identifier: Apache-2.0
"""Files that outlast a power cut: written beside, synced, renamed, and the folder synced too."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from fedlearn.errors import StorageError

_HINTS = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the quota is used up: make room",
    errno.EFBIG: "the file size limit of this process is too small",
    errno.EACCES: "run as a user who may write there, or choose another directory",
    errno.EPERM: "run as a user who may write there, or choose another directory",
    errno.EROFS: "the file system is read-only: choose another directory",
    errno.EIO: "the disk fails: replace it",
}


@contextlib.contextmanager
def storage_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "")
        raise StorageError(f"cannot {action} {path}: {error.strerror}", hint=hint) from error


def write_durably(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace the file: after a power cut it is the old one or the new one, never a mixture.

    `mode` is the file's, less the umask. Raises StorageError when it cannot be written, or when
    something other than a file has its name: a device or a pipe would be replaced, not written to.
    """
    if path.exists() and not path.is_file():
        raise StorageError(f"{path} is no regular file", hint="choose another name")
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors("write", path):
        try:
            temporary.unlink(missing_ok=True)  # it might have another mode
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(temporary, flags, mode), "wb") as stream:  # noqa: PTH123
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            publish(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def publish(temporary: Path, path: Path) -> None:
    """Give a file that is synced to disk its final name, durably."""
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
