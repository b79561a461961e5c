# SPDX-License-Identifier: Apache-2.0
"""Local training: epochs of SGD over one device's samples."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.dataset import Dataset
from fedlearn.errors import TrainerError
from fedlearn.model import Model
from fedlearn.trainer.loss import softmax_cross_entropy
from fedlearn.trainer.order import sample_order
from fedlearn.trainer.selftest import calibrate
from fedlearn.trainer.tail import Features, Tail, take
from fedlearn.wire.messages import TrainingPlan

LOSSES = ("softmax_cross_entropy",)

# Loss and accuracy before and after are measured on this many samples at most: 3 % is close enough
# for a dashboard, and the whole set would cost a third of an epoch each time.
JUDGED_SAMPLES = 256
# Small, so that judging never needs more memory than training.
_JUDGED_BATCH = 16

# Called with the epoch (from 0), the share of the whole training done (0..1) and the mean loss of
# the epoch so far.
Progress = Callable[[int, float, float], None]


@dataclass(frozen=True, slots=True)
class Quality:
    """Mean cross-entropy (nats) and accuracy (0..1) by the trainer's own forward pass."""

    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Training:
    """What came out: the trained tensors by number, and the quality on the training data."""

    values: dict[int, NDArray[np.int8] | NDArray[np.int32]]
    before: Quality
    after: Quality
    samples: int


def train(
    model: Model,
    tensors: Collection[int],
    dataset: Dataset,
    plan: TrainingPlan,
    *,
    seed: int,
    max_samples: int | None = None,
    progress: Progress | None = None,
) -> Training:
    """Train the tensors with these numbers on `dataset`; the model itself is not changed.

    The result depends on model, tensors, data, plan and seed alone, to the bit. With more than
    `max_samples` samples, that many are drawn by the seed. Raises UnsupportedOperatorError or
    TrainerError.
    """
    if plan.loss not in LOSSES:
        raise TrainerError(f"there is no loss {plan.loss!r}", hint=f"use {', '.join(LOSSES)}")
    if max_samples is not None and max_samples < 1:
        raise TrainerError(f"a training on {max_samples} samples is none")
    tail = Tail(model, tensors)
    calibrate(tail, model, dataset.inputs)
    drawn = sample_order(seed, 0, len(dataset))
    if max_samples is not None and max_samples < len(dataset):
        dataset = dataset.take(drawn[:max_samples])
        drawn = drawn[drawn < max_samples]
    features, labels = tail.features(dataset.inputs), dataset.labels
    judged = drawn[:JUDGED_SAMPLES]
    before = _judge(tail, features, labels, judged)
    batches = -(-len(labels) // plan.batch_size)
    for epoch in range(plan.epochs):
        order = sample_order(seed, epoch + 1, len(labels))
        loss, seen = 0.0, 0
        # Batches of equal size: the mean gradient of a remainder of two samples, taken at the full
        # learning rate, has been seen to undo a round's training.
        for batch, rows in enumerate(np.array_split(order, batches)):
            loss += _step(tail, take(features, rows), labels[rows], plan.learning_rate)
            seen += len(rows)
            if progress:
                progress(epoch, (epoch + (batch + 1) / batches) / plan.epochs, loss / seen)
    after = _judge(tail, features, labels, judged)
    return Training(tail.trained(), before, after, len(labels))


def _step(tail: Tail, features: Features, labels: NDArray[np.int64], learning_rate: float) -> float:
    """One step on one batch; returns the summed loss before it."""
    judgement = softmax_cross_entropy(tail.forward(features), labels)
    tail.backward(judgement.errors)
    tail.update(learning_rate / len(labels))
    return judgement.loss


def _judge(
    tail: Tail, features: Features, labels: NDArray[np.int64], rows: NDArray[np.int64]
) -> Quality:
    loss, hits = 0.0, 0
    for batch in np.array_split(rows, -(-len(rows) // _JUDGED_BATCH)):
        judgement = softmax_cross_entropy(tail.forward(take(features, batch)), labels[batch])
        loss += judgement.loss
        hits += judgement.hits
    return Quality(loss / len(rows), hits / len(rows))
