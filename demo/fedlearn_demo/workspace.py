# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: who may write in it, and what goes where."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from fedlearn.errors import ConfigError, StorageError

# Tells a folder of the demo, which may be emptied, from one that belongs to somebody.
_MARKER = ".fedlearn-demo"


class Workspace:
    """A context manager: an empty folder, locked against a second demo."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def aggregator(self) -> Path:
        """Data directory of the aggregator."""
        return self.root / "aggregator"

    @property
    def ca(self) -> Path:
        """The CA that certifies the aggregator and its devices."""
        return self.aggregator / "identity" / "ca.pem"

    @property
    def test_data(self) -> Path:
        """The test digits, for the aggregator and the last check."""
        return self.root / "test.npz"

    @property
    def final_model(self) -> Path:
        """The model to take away."""
        return self.root / "digits-final.tflite"

    @property
    def picture(self) -> Path:
        """Accuracy and bytes by round."""
        return self.root / "accuracy.png"

    @property
    def report(self) -> Path:
        """The figures of the run."""
        return self.root / "report.json"

    def device(self, name: str) -> Path:
        """All that a device has: configuration, data, state, log."""
        return self.root / name

    def log(self, name: str) -> Path:
        """Log of a process."""
        return self.root / f"{name}.log"

    def __enter__(self) -> Self:
        marker = self.root / _MARKER
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if any(self.root.iterdir()) and not marker.exists():
                raise ConfigError(
                    f"{self.root} holds files that are not the demo's",
                    hint="name another folder with --out",
                )
            self._lock = marker.open("wb")
            self._take_lock()
            for entry in self.root.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry != marker:
                    entry.unlink()
        except OSError as error:
            raise StorageError(f"cannot use {self.root}: {error.strerror}") from error
        return self

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ConfigError(
                f"another demo is running in {self.root}", hint="wait, or use another --out"
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()
