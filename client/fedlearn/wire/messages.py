# SPDX-License-Identifier: Apache-2.0
"""The messages of protocol version 1, as plain frozen dataclasses.

`codec` turns them into CBOR and back and refuses a received value outside the range that
its annotation declares; `protocol.cddl` describes the bytes. This module imports neither NumPy nor
the codec, so the agent may use it while it waits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

PROTOCOL_VERSION = 1
# A board that trains within hundreds of MB has no larger model, and a smaller disk than a server.
MAX_MODEL_BYTES = 64 * 1024 * 1024
# Names of parts of a model that can be trained; a number of layers is one, too. What each means is
# in `fedlearn.trainer.tails`.
TAILS = ("last", "dense", "all")
# What training makes small; `fedlearn.trainer.loss` says how.
LOSSES = ("softmax_cross_entropy", "sigmoid_cross_entropy", "mean_squared_error")
SCHEDULES = ("constant", "linear", "cosine")
# Of a plan that `overshoots`.
OVERSHOOTS = "the learning rate times the proximal term must stay below 1, or weights swing"
OVERSHOOTS_HINT = "use a smaller learning rate or a smaller proximal term"


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the greatest value of a number, or length of a text or byte string."""

    least: float
    greatest: float

    def allows(self, value: float | str | bytes) -> bool:
        """Whether the value, or its length, is within the range; never for a NaN."""
        size = len(value) if isinstance(value, str | bytes) else value
        return self.least <= size <= self.greatest

    def __str__(self) -> str:
        return f"within {self.least}..{self.greatest}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """The regular expression that the whole of a text matches."""

    expression: str

    def allows(self, value: str) -> bool:
        """Whether the whole value matches."""
        return re.fullmatch(self.expression, value) is not None

    def __str__(self) -> str:
        return f"of the form {self.expression}"


# Part of a URL, a file name and a log line without quoting; 64 as in a host name's label and LDH.
NAME = r"[A-Za-z0-9._-]{1,64}"

# Of a request for a P-256 key with a name of 64 letters there are some 300, of a certificate 900.
MAX_REQUEST_BYTES = 2048
MAX_CERTIFICATE_BYTES = 8192

Name = Annotated[str, Pattern(NAME)]
# It stands in a file and in a line of text (RFC 3986: unreserved letters).
TOKEN = Pattern(r"[A-Za-z0-9._~-]{16,128}")
Token = Annotated[str, TOKEN]
Digest = Annotated[bytes, Range(32, 32)]  # SHA-256
Count = Annotated[int, Range(0, 2**63 - 1)]  # fits int64 and SQLite's INTEGER
Positive = Annotated[int, Range(1, 2**63 - 1)]
Seed = Annotated[int, Range(0, 2**64 - 1)]
Share = Annotated[float, Range(0.0, 1.0)]
Seconds = Annotated[float, Range(0.0, 1e9)]  # 30 years: whatever is longer is a mistake
Dtype = Annotated[str, Pattern("int8|int32")]
Schedule = Annotated[str, Pattern("|".join(SCHEDULES))]
ErrorType = Annotated[str, Pattern("int8|float32")]
FractionBits = Annotated[int, Range(0, 8)]


class Encoding(IntEnum):
    """The numbers of the encodings of an integer array; `fedlearn.wire.delta` describes them."""

    ZERO = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    CODES = 4
    PLANES = 5


@dataclass(frozen=True, slots=True)
class TrainableTensor:
    """One tensor of the model that the round updates.

    `index` is its place in the subgraph's tensor table; `dtype` is "int8" (a weight) or "int32"
    (a bias).
    """

    index: Count
    name: str
    shape: tuple[Count, ...]
    dtype: Dtype


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How a device trains: the hyper-parameters of the local SGD.

    `steps` of SGD, where it is not 0, end the training before or after `epochs` passes.
    `schedule` is how the learning rate goes from its value to 0 over the training. `proximal` is
    the mu of FedProx, which pulls weights back to the round's model (Li et al. 2020); a pull of
    less than half of a weight's smallest step is lost unless rounding is stochastic. `clip_norm`
    bounds the l2 norm of a batch's mean gradient in real units; 0: none. `class_weights` are
    factors of the classes' losses; empty: all 1. `validation` is the share of the samples that is
    held out to judge with; `patience` ends the training after so many epochs without a better loss
    on them, and the best epoch's weights are the result; 0: never. Weights have `fraction_bits`
    while they train, 0 to 8; with fewer than 8, rounding is stochastic. `errors` is the type of the
    error tensors.
    """

    loss: str
    epochs: Positive
    batch_size: Positive
    learning_rate: float
    steps: Count = 0
    schedule: Schedule = "constant"
    proximal: float = 0.0
    clip_norm: float = 0.0
    class_weights: tuple[float, ...] = ()
    validation: Share = 0.0
    patience: Count = 0
    fraction_bits: FractionBits = 8
    errors: ErrorType = "int8"

    @property
    def overshoots(self) -> bool:
        """Whether a step's pull, lr mu of the way back, is all of the way or more."""
        return self.learning_rate * self.proximal >= 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the aggregator accepts: bytes of an update's body, samples it may claim."""

    update_bytes: Count
    samples: Count


@dataclass(frozen=True, slots=True)
class TaskDescriptor:
    """Answer to `GET /v1/task`."""

    task: Name
    round: Count
    state: str
    model: Digest  # the round's base model
    model_bytes: Count
    cohort: Count
    tensors: tuple[TrainableTensor, ...]
    plan: TrainingPlan
    limits: Limits


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Body of `PUT /v1/devices/{device}/certificate`.

    `request` is a certificate signing request (PKCS #10, RFC 2986) in DER. With a `token` the
    device is enrolled; without one, over a connection with its certificate, that one is renewed.
    """

    request: Annotated[bytes, Range(1, MAX_REQUEST_BYTES)]
    token: Token | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """Answer to an enrolment: the device's certificate (X.509) in PEM."""

    certificate: Annotated[bytes, Range(1, MAX_CERTIFICATE_BYTES)]


@dataclass(frozen=True, slots=True)
class TrainingFailure:
    """Why a device gave its seat in a round back."""

    round: Count
    reason: str


@dataclass(frozen=True, slots=True)
class CheckIn:
    """Body of `POST /v1/checkin`."""

    task: Name
    device: Name
    failure: TrainingFailure | None = None


@dataclass(frozen=True, slots=True)
class TrainOrder:
    """Answer to a check-in: train this round."""

    round: Count
    model: Digest  # the base model
    model_bytes: Count
    seed: Seed  # the same for the whole round
    deadline_s: Seconds  # from now
    tensors: tuple[Count, ...]
    plan: TrainingPlan
    limits: Limits


@dataclass(frozen=True, slots=True)
class Wait:
    """Answer to a check-in: nothing to do yet, ask again after `retry_s` seconds."""

    retry_s: Seconds
    reason: str


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a device tells of its training.

    Losses are in the unit of the task's loss, nats for those of classifiers; accuracies in 0..1,
    None where the loss knows none. `accuracy_personal` is that of the copy which the device
    fine-tuned for itself, on the samples on which `accuracy_before` judges the round's model.
    """

    loss_before: float
    loss_after: float
    train_s: Seconds  # wall seconds, from the order to the encoded update
    cpu_s: Seconds
    peak_rss_bytes: Count
    accuracy_before: Share | None = None
    accuracy_after: Share | None = None
    accuracy_personal: Share | None = None


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """What an int8 activation would have to hold on this device's data, in real units.

    `index` is the tensor's number; `low` and `high` are the least and the greatest value before
    int8 cut it off, `clipped` the share of the values that it did cut off.
    """

    index: Count
    low: float
    high: float
    clipped: Share


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """An integer delta of one tensor in one of the encodings of `fedlearn.wire.delta`."""

    index: Count
    encoding: Count
    data: bytes


@dataclass(frozen=True, slots=True)
class Update:
    """Body of `PUT /v1/rounds/{round}/updates/{device}`: a client update."""

    task: Name
    round: Count
    model: Digest  # the base model
    device: Name
    samples: Count
    metrics: Metrics
    tensors: tuple[EncodedTensor, ...]  # those that were trained; a small device may leave some out
    ranges: tuple[ActivationRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """Answer to `GET /v1/models/{target}?from={base}`: the bytes' difference modulo 256."""

    base: Digest
    target: Digest
    encoding: Count
    data: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """Answer to an update that is on disk; `duplicate` if the same bytes were there before."""

    round: Count
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """Body of every 4xx and 5xx answer."""

    error: str
    hint: str


Message = (
    TaskDescriptor
    | Enrolment
    | Certificate
    | CheckIn
    | TrainOrder
    | Wait
    | Update
    | Difference
    | Receipt
    | Refusal
)
