# SPDX-License-Identifier: Apache-2.0
"""One plain message of each kind, for tests that change a single thing of it."""

from __future__ import annotations

from fedlearn.wire.messages import (
    ActivationRange,
    Certificate,
    CheckIn,
    Difference,
    EncodedTensor,
    Encoding,
    Enrolment,
    Limits,
    Message,
    Metrics,
    Receipt,
    Refusal,
    TaskDescriptor,
    TrainableTensor,
    TrainingFailure,
    TrainingPlan,
    TrainOrder,
    Update,
    Wait,
)

DIGEST = bytes(range(32))
MAX_BYTES = 100_000

PLAN = TrainingPlan("cross-entropy", epochs=2, batch_size=32, learning_rate=0.1)
FULL_PLAN = TrainingPlan(
    "cross-entropy",
    epochs=2,
    batch_size=32,
    learning_rate=0.1,
    steps=100,
    schedule="cosine",
    proximal=0.5,
    clip_norm=1.0,
    class_weights=(1.0, 2.5),
    validation=0.25,
    patience=3,
    fraction_bits=0,
    errors="float32",
)
LIMITS = Limits(update_bytes=60_000, samples=10_000)
METRICS = Metrics(
    1.5,
    0.25,
    train_s=2.75,
    cpu_s=2.5,
    peak_rss_bytes=40_000_000,
    accuracy_before=0.5,
    accuracy_after=0.9,
    accuracy_personal=0.95,
)
UPDATE = Update(
    task="digits",
    round=7,
    model=DIGEST,
    device="board-1",
    samples=400,
    metrics=METRICS,
    tensors=(
        EncodedTensor(2, Encoding.INT16, bytes(20)),
        EncodedTensor(3, Encoding.CODES, bytes(range(256))),
        EncodedTensor(4, Encoding.ZERO, b""),
    ),
    ranges=(ActivationRange(5, -1.0, 6.5, 0.125),),
)
TENSOR = TrainableTensor(3, "dense/MatMul", (64, 784), "int8")
EXAMPLES: tuple[Message, ...] = (
    TaskDescriptor("digits", 7, "open", DIGEST, 56_640, 10, (TENSOR, TENSOR), PLAN, LIMITS),
    CheckIn("digits", "board-1"),
    CheckIn("digits", "board-1", TrainingFailure(7, "out of memory")),
    TrainOrder(7, DIGEST, 56_640, 2**64 - 1, 60.0, (2, 3, 4), PLAN, LIMITS),
    TrainOrder(7, DIGEST, 56_640, 0, 60.0, (2,), FULL_PLAN, LIMITS),
    Wait(5.0, "the round is full"),
    UPDATE,
    Difference(DIGEST, DIGEST[::-1], Encoding.CODES, bytes(100)),
    Receipt(7, duplicate=False),
    Enrolment(b"\x30\x03req"),
    Enrolment(b"\x30\x03req", "one-time_token.4~"),
    Certificate(b"-----BEGIN CERTIFICATE-----"),
    Refusal("the round is closed", "check in again"),
)
