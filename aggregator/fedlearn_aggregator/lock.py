# SPDX-License-Identifier: Apache-2.0
"""One process at a time owns a data directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlearn import lock
from fedlearn.errors import StorageError


@contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Hold the directory's lock; StorageError if another process does."""
    handle = lock.take(
        data_dir,
        StorageError(
            f"{data_dir} is in use by another fedlearn-aggregator",
            hint="stop it first, or take another --data-dir",
        ),
    )
    try:
        yield
    finally:
        os.close(handle)
