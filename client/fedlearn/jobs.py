# SPDX-License-Identifier: Apache-2.0
"""What the agent asks of its trainer process, and what comes back.

The two talk CBOR over a pipe, each message behind its length in four big-endian bytes. They are
one program in two processes, so these messages are no part of the wire protocol.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, fields
from typing import BinaryIO

import cbor2

from fedlearn.wire.messages import MAX_MODEL_BYTES, TrainingPlan

# A difference may be as large as the model, and comes with two paths; an update is smaller.
MAX_JOB_BYTES = MAX_MODEL_BYTES + 64 * 1024


@dataclass(frozen=True, slots=True)
class PatchJob:
    """Rebuild a model from `base_path` and a `Difference` body; write it durably."""

    base_path: str
    difference: bytes
    target_path: str
    target: bytes  # SHA-256 that the result must have


@dataclass(frozen=True, slots=True)
class TrainJob:
    """Train one round and encode the update.

    `budget_kib`, where it is not 0, is the memory that training may use. With `personal_epochs` a
    copy is trained that many epochs more and written to `personal_path`.
    """

    task: str
    device: str
    round: int
    model: bytes  # SHA-256 of the base model
    model_path: str
    data_path: str
    seed: int
    tensors: tuple[int, ...]
    plan: TrainingPlan
    max_samples: int
    budget_kib: int = 0
    personal_epochs: int = 0
    personal_path: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """A sign of life during a `TrainJob`: the share of it that is done, 0..1.

    The first one comes before the training, with the bytes that the program itself takes.
    """

    done: float
    rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The job succeeded. `body` is the CBOR `Update` of a `TrainJob`, empty for a `PatchJob`."""

    body: bytes
    samples: int
    train_s: float
    peak_rss_bytes: int
    accuracy: float | None = None  # of the round's model, on the judged samples
    accuracy_personal: float | None = None  # of the device's own copy, on the same
    loss: float | None = None  # of the round's model, on the judged samples
    loss_personal: float | None = None  # of the device's own copy, on the same
    choice: tuple[str, ...] = ()  # what a budget picked to train, and why
    unpinned: str = ""  # why another machine may train other bits


@dataclass(frozen=True, slots=True)
class Failed:
    """The job failed for a reason that a person can understand."""

    error: str
    hint: str
    out_of_memory: bool = False


JobMessage = PatchJob | TrainJob | Progress | Done | Failed
_KINDS: dict[str, type[JobMessage]] = {
    kind.__name__: kind for kind in (PatchJob, TrainJob, Progress, Done, Failed)
}


def send(stream: BinaryIO, message: JobMessage) -> None:
    """Write one message and flush."""
    body = cbor2.dumps({"kind": type(message).__name__, **asdict(message)})
    stream.write(struct.pack(">I", len(body)))
    stream.write(body)
    stream.flush()


def receive(stream: BinaryIO) -> JobMessage | None:
    """Read one message; None at the end of the stream, also in the middle of a message."""
    head = _read_exactly(stream, 4)
    if head is None:
        return None
    (size,) = struct.unpack(">I", head)
    if size > MAX_JOB_BYTES:
        raise ValueError(f"job message of {size} bytes")
    body = _read_exactly(stream, size)
    if body is None:
        return None
    values = cbor2.loads(body)
    kind = _KINDS[values.pop("kind")]
    if kind is TrainJob:
        plan = values["plan"]
        values["plan"] = TrainingPlan(**{**plan, "class_weights": tuple(plan["class_weights"])})
        values["tensors"] = tuple(values["tensors"])
    elif kind is Done:
        values["choice"] = tuple(values["choice"])
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def _read_exactly(stream: BinaryIO, size: int) -> bytes | None:
    """`size` bytes, also from an unbuffered pipe, which gives them in pieces; None at the end."""
    pieces = []
    while size:
        piece = stream.read(size)
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
