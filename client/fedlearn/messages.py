# SPDX-License-Identifier: Apache-2.0
"""The messages of protocol version 1, as plain frozen dataclasses.

`fedlearn.codec` turns them into CBOR and back; `protocol.cddl` describes the bytes. This module
imports neither NumPy nor the codec, so the agent may use it while it waits.
"""

from __future__ import annotations

from dataclasses import dataclass

PROTOCOL_VERSION = 1


@dataclass(frozen=True, slots=True)
class TrainableTensor:
    """One tensor of the model that the round updates.

    `index` is its place in the subgraph's tensor table; `dtype` is "int8" (a weight) or "int32"
    (a bias).
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How a device trains: the hyper-parameters of the local SGD."""

    loss: str
    epochs: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What the aggregator accepts: bytes of an update's body, samples it may claim."""

    update_bytes: int
    samples: int


@dataclass(frozen=True, slots=True)
class TaskDescriptor:
    """Answer to `GET /v1/task`."""

    task: str
    round: int
    state: str
    model: bytes  # SHA-256 of the round's base model, 32 bytes
    model_bytes: int
    cohort: int
    tensors: tuple[TrainableTensor, ...]
    plan: TrainingPlan
    limits: Limits


@dataclass(frozen=True, slots=True)
class TrainingFailure:
    """Why a device gave its seat in a round back."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class CheckIn:
    """Body of `POST /v1/checkin`."""

    task: str
    device: str
    failure: TrainingFailure | None = None


@dataclass(frozen=True, slots=True)
class TrainOrder:
    """Answer to a check-in: train this round."""

    round: int
    model: bytes  # SHA-256 of the base model, 32 bytes
    model_bytes: int
    seed: int  # 64 bits, the same for the whole round
    deadline_s: float  # seconds from now
    tensors: tuple[int, ...]
    plan: TrainingPlan
    limits: Limits


@dataclass(frozen=True, slots=True)
class Wait:
    """Answer to a check-in: nothing to do yet, ask again after `retry_s` seconds."""

    retry_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a device tells of its training. Losses in nats, accuracies in 0..1."""

    loss_before: float
    loss_after: float
    accuracy_before: float
    accuracy_after: float
    train_s: float  # wall seconds, from the order to the encoded update
    cpu_s: float
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """An integer delta of one tensor in one of the encodings of `fedlearn.delta`."""

    index: int
    encoding: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Update:
    """Body of `PUT /v1/rounds/{round}/updates/{device}`: a client update."""

    task: str
    round: int
    model: bytes  # SHA-256 of the base model, 32 bytes
    device: str
    samples: int
    metrics: Metrics
    tensors: tuple[EncodedTensor, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Answer to `GET /v1/models/{target}?from={base}`: the bytes' difference modulo 256."""

    base: bytes  # SHA-256, 32 bytes
    target: bytes  # SHA-256, 32 bytes
    encoding: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """Answer to an update that is on disk; `duplicate` if the same bytes were there before."""

    round: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """Body of every 4xx and 5xx answer."""

    error: str
    hint: str


Message = TaskDescriptor | CheckIn | TrainOrder | Wait | Update | Difference | Receipt | Refusal
