# SPDX-License-Identifier: Apache-2.0
"""What the device keeps on disk, such that a power cut at any instruction loses nothing.

    lock              held while an agent runs
    agent.json        what it remembers, see `Memory`
    pending.cbor      an update that is trained and not yet acknowledged
    personal.tflite   the copy that was trained for this device alone, if it keeps one
    models/<hex>.tflite, models/<hex>.part   models by SHA-256, and a download under way

Whatever cannot be read, because it is torn or corrupt, is put aside and never stops the agent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedlearn import lock
from fedlearn.agent.allowance import Allowance
from fedlearn.durable import storage_errors, sync_directory, write_durably
from fedlearn.errors import ProtocolError, StorageError
from fedlearn.jobs import MAX_JOB_BYTES
from fedlearn.wire import codec
from fedlearn.wire.messages import Update

# The current model, and the one before: the aggregator sends a difference from either.
MODELS_KEPT = 2
# As for `training.memory_kib`: a damaged file must not ask for more than a job can carry.
MAX_ALLOWANCE_KIB = 2**31

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the agent remembers from one start to the next: hints, all of which may be lost."""

    aggregator: str = ""  # host:port of the aggregator that answered last
    allowance: Allowance = field(
        default_factory=Allowance
    )  # after the kernel killed a training for its memory


def set_aside(path: Path, name: str, why: str) -> None:
    """Rename a file that cannot be used, for a person to look at, and keep the last such one."""
    logger.warning("%s is put aside as %s: %s", path, name, why)
    try:
        path.replace(path.with_name(name))
    except OSError as error:
        logger.warning("cannot rename %s: %s", path, error.strerror)


class StateDirectory:
    """The agent's directory, of which it is the only user."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.personal = path / "personal.tflite"
        self.models = Models(path / "models")
        with storage_errors("create", self.models.path):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)  # an update tells of the data
            self.models.path.mkdir(exist_ok=True)
        self._lock = lock.take(
            path,
            StorageError(
                f"another agent uses {path}",
                hint="stop it, or give this one a device.state_dir of its own",
            ),
        )

    def close(self) -> None:
        """Let another agent use the directory."""
        os.close(self._lock)

    def memory(self) -> Memory:
        """Read what was remembered; nothing if there is nothing readable."""
        path = self._path / "agent.json"
        try:
            values = json.loads(path.read_bytes())
            allowance = values.get("allowance", {})  # absent before version 0.2
            return Memory(
                aggregator=str(values["aggregator"]),
                allowance=Allowance(
                    kib=min(max(0, int(allowance.get("kib", 0))), MAX_ALLOWANCE_KIB),
                    kind=str(allowance.get("kind", "")),
                ),
            )
        except FileNotFoundError:
            pass
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
        ) as error:
            set_aside(path, "agent.json.corrupt", f"cannot be read: {error}")
        return Memory()

    def remember(self, memory: Memory) -> None:
        """Write what to remember."""
        write_durably(self._path / "agent.json", json.dumps(asdict(memory)).encode())

    def save_pending(self, body: bytes) -> None:
        """Keep an update's body until it is acknowledged."""
        write_durably(self._path / "pending.cbor", body)

    def pending(self) -> tuple[Update, bytes] | None:
        """Return the update that is not acknowledged yet, and its body."""
        path = self._path / "pending.cbor"
        try:
            body = path.read_bytes()
            return codec.decode(Update, body, max_bytes=MAX_JOB_BYTES), body
        except FileNotFoundError:
            pass
        except (OSError, ProtocolError) as error:
            set_aside(path, "pending.cbor.corrupt", f"cannot be read: {error}")
        return None

    def drop_pending(self) -> None:
        """Forget the update: it is acknowledged, or will never be."""
        path = self._path / "pending.cbor"
        with storage_errors("delete", path):
            path.unlink(missing_ok=True)
            sync_directory(self._path)


class Models:
    """Models by their SHA-256."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, digest: bytes) -> Path:
        """Return where the model is, or will be."""
        return self.path / f"{digest.hex()}.tflite"

    def partial(self, digest: bytes) -> Path:
        """Return where the model's download is collected."""
        return self.path / f"{digest.hex()}.part"

    def has(self, digest: bytes) -> bool:
        """Tell whether the model is here and, to the last bit, what it should be."""
        path = self.file(digest)
        try:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").digest()
        except FileNotFoundError:
            return False
        except OSError as error:
            set_aside(path, "model.corrupt", f"cannot be read: {error.strerror}")
            return False
        if found != digest:
            set_aside(path, "model.corrupt", "its SHA-256 is wrong")
        return found == digest

    def newest(self) -> bytes | None:
        """Return the digest of the intact model that came last: the base of a difference."""
        for path in self._by_age():
            with contextlib.suppress(ValueError):
                digest = bytes.fromhex(path.stem)
                if self.has(digest):
                    return digest
        return None

    def prune(self, current: bytes) -> None:
        """Delete all but `current` and the one before it, and what broken downloads left."""
        others = [path for path in self._by_age() if path != self.file(current)]
        for path in (*others[MODELS_KEPT - 1 :], *self.path.glob(".*.tmp")):
            with contextlib.suppress(OSError):
                path.unlink()
        self.drop_partials(current)

    def drop_partials(self, current: bytes) -> None:
        """Delete what broken downloads of other models left: only `current` is still wanted."""
        for path in self.path.glob("*.part"):
            if path != self.partial(current):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _by_age(self) -> list[Path]:
        dated = []
        for path in self.path.glob("*.tflite"):
            with contextlib.suppress(OSError):
                dated.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(dated, reverse=True)]
