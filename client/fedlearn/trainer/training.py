# SPDX-License-Identifier: Apache-2.0
"""Local training: SGD over one device's samples, as the round's plan says."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.dataset import Dataset
from fedlearn.errors import DatasetError, TrainerError
from fedlearn.model import Model
from fedlearn.trainer.dither import Dither
from fedlearn.trainer.loss import Loss, make_loss
from fedlearn.trainer.order import sample_order
from fedlearn.trainer.parameters import FRACTION_BITS
from fedlearn.trainer.prefix import Prefix
from fedlearn.trainer.ranges import RangeMeter
from fedlearn.trainer.schedule import factor
from fedlearn.trainer.section import Features, take
from fedlearn.trainer.selftest import prove
from fedlearn.trainer.tail import Tail, Values
from fedlearn.wire.messages import OVERSHOOTS, OVERSHOOTS_HINT, ActivationRange, TrainingPlan

# Loss and accuracy before and after are measured on this many samples at most: 3 % is close enough
# for a dashboard, and the whole set would cost a third of an epoch each time.
JUDGED_SAMPLES = 256
# Judging needs no larger batches than this to be fast. Never larger ones than training, which would
# need more memory.
JUDGED_BATCH = 16

FLOAT_ERRORS = "float errors are summed in the order that this machine's BLAS has"

# Called with the epoch (from 0), the share of the whole training done (0..1) and the mean loss of
# the epoch so far.
Progress = Callable[[int, float, float], None]


@dataclass(frozen=True, slots=True)
class Quality:
    """Mean loss and accuracy (0..1; None where the loss knows none) by the trainer itself."""

    loss: float
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Personal:
    """A copy that was trained further for this device alone: its tensors and quality."""

    values: Values
    quality: Quality


@dataclass(frozen=True, eq=False)
class Training:
    """What came out: the trained tensors by number, and the quality on the judged samples.

    Those are held-out samples when the plan holds some out, else some of the training data.
    `held` are the numbers of all that were held out, `best_epoch` (from 1) is the one whose weights
    these are. `ranges` are what the activations of the trained tail would have to hold on the
    judged samples, `logits` is the tensor among them that the loss takes before int8 cuts it off,
    if any. `unpinned` says why another machine may make other bits, and is empty where all make
    these.
    """

    values: Values
    before: Quality
    after: Quality
    samples: int
    held: NDArray[np.int64]
    epochs: int
    best_epoch: int
    stopped_early: bool
    personal: Personal | None
    ranges: tuple[ActivationRange, ...]
    logits: int | None
    unpinned: str


@dataclass(frozen=True, eq=False)
class _Samples:
    """Features and labels; the numbers of the samples to train on, held out, and to judge with."""

    features: Features
    labels: NDArray[Any]
    trained: NDArray[np.int64]
    held: NDArray[np.int64]
    judged: NDArray[np.int64]


def train(
    model: Model,
    tensors: Collection[int],
    dataset: Dataset,
    plan: TrainingPlan,
    *,
    seed: int,
    max_samples: int | None = None,
    personal_epochs: int | None = None,
    progress: Progress | None = None,
) -> Training:
    """Train the tensors with these numbers on `dataset`; the model itself is not changed.

    The result depends on model, tensors, data, plan and seed alone, to the bit, but for what
    `Training.unpinned` tells. With more than `max_samples` samples, that many are drawn by the
    seed. With `personal_epochs` a copy is trained that many epochs more. Raises
    UnsupportedOperatorError, DatasetError or TrainerError.
    """
    if plan.overshoots:
        raise TrainerError(OVERSHOOTS, hint=OVERSHOOTS_HINT)
    if max_samples is not None and max_samples < 1:
        raise TrainerError(f"a training on {max_samples} samples is none")
    loss = make_loss(plan.loss, model, plan.class_weights)
    tail = Tail(model, tensors, absorbed=loss.absorbed, errors=plan.errors)
    prefix = Prefix(model, tail.entries, dataset.inputs, batch=plan.batch_size)
    unpinned = prefix.unpinned or (FLOAT_ERRORS if plan.errors != "int8" else "")
    proof = dataset.inputs
    drawn = sample_order(seed, 0, len(dataset))
    if max_samples is not None and max_samples < len(dataset):
        dataset = dataset.take(drawn[:max_samples])
        drawn = drawn[drawn < max_samples]
    samples = _split(prefix.features(dataset.inputs), dataset.labels, drawn, plan.validation)
    del prefix  # its tables are not needed again
    prove(tail, model, proof, batch=plan.batch_size)
    dither = None if plan.fraction_bits == FRACTION_BITS else Dither(seed)
    tail.thaw(plan.fraction_bits, dither, anchored=plan.proximal > 0)
    before = _judge(tail, loss, samples, plan)
    run = _Run(tail, loss, samples, plan, seed=seed, more=personal_epochs or 0, progress=progress)
    run.go()
    with RangeMeter(tail.layers) as meter:
        after, values = _judge(tail, loss, samples, plan), tail.trained()
    personal = None
    if personal_epochs is not None:
        run.go_on()
        personal = Personal(tail.trained(), _judge(tail, loss, samples, plan))
    return Training(
        values=values,
        before=before,
        after=after,
        samples=len(samples.trained),
        held=samples.held,
        epochs=run.epochs_of_plan,
        best_epoch=run.best_epoch,
        stopped_early=run.stopped_early,
        personal=personal,
        ranges=meter.ranges(),
        logits=tail.logits,
        unpinned=unpinned,
    )


def _split(
    features: Features, labels: NDArray[Any], drawn: NDArray[np.int64], validation: float
) -> _Samples:
    held = round(validation * len(drawn))
    if validation and not 0 < held < len(drawn):
        raise DatasetError(
            f"{len(drawn)} samples cannot be split into {1 - validation:.0%} to train on and "
            f"{validation:.0%} to validate with",
            hint="collect more samples, or change the share that is held out",
        )
    trained = np.sort(drawn[held:])
    judged = drawn[: held or None][:JUDGED_SAMPLES]
    return _Samples(features, labels, trained, drawn[:held], judged)


class _Run:
    """The steps of one training."""

    def __init__(
        self,
        tail: Tail,
        loss: Loss,
        samples: _Samples,
        plan: TrainingPlan,
        *,
        seed: int,
        more: int,
        progress: Progress | None,
    ) -> None:
        """`more` are the epochs of `go_on`."""
        self._tail, self._loss, self._samples = tail, loss, samples
        self._plan, self._seed, self._progress = plan, seed, progress
        self._batches = -(-len(samples.trained) // plan.batch_size)
        self._steps = plan.steps or plan.epochs * self._batches
        self._more = more
        self._done = 0
        self._epochs = 0
        self.epochs_of_plan = 0
        self.best_epoch = 0
        self.stopped_early = False

    def go(self) -> None:
        """Train as the plan says."""
        patience, best, waited = self._plan.patience, float("inf"), 0
        snapshot = None
        while self._done < self._steps:
            self._epoch(self._steps - self._done)
            if not patience:
                continue
            quality = _judge(self._tail, self._loss, self._samples, self._plan)
            if quality.loss < best:
                best, waited, snapshot = quality.loss, 0, self._tail.snapshot()
                self.best_epoch = self._epochs
            else:
                waited += 1
                if waited >= patience:
                    self.stopped_early = self._done < self._steps
                    self._done = self._steps
        self.epochs_of_plan = self._epochs
        if snapshot is None:
            self.best_epoch = self._epochs
        else:
            self._tail.restore(snapshot)

    def go_on(self) -> None:
        """Train some epochs more, at the plan's full learning rate."""
        for _ in range(self._more):
            self._epoch(self._batches)

    def _epoch(self, most: int) -> None:
        """One pass over the samples, of at most so many steps."""
        samples, plan = self._samples, self._plan
        order = sample_order(self._seed, self._epochs + 1, len(samples.trained))
        loss, seen = 0.0, 0
        # Batches of equal size: the mean gradient of a remainder of two samples, taken at the full
        # learning rate, has been seen to undo a round's training.
        for part in np.array_split(order, self._batches)[:most]:
            rate = plan.learning_rate
            if self._done < self._steps:
                rate *= factor(plan.schedule, self._done, self._steps)
            loss += self._step(samples.trained[part], rate)
            seen += len(part)
            self._done += 1
            if self._progress:
                total = self._steps + self._more * self._batches
                self._progress(self._epochs, self._done / total, loss / seen)
        self._epochs += 1

    def _step(self, rows: NDArray[np.int64], rate: float) -> float:
        """One step on one batch; returns the summed loss before it."""
        samples, plan = self._samples, self._plan
        outputs = self._tail.forward(take(samples.features, rows))
        judgement = self._loss.judge(outputs, samples.labels[rows], count=False)
        self._tail.backward(judgement.errors)
        share = 1.0
        if plan.clip_norm:
            norm = self._tail.gradient_norm() / len(rows)
            share = plan.clip_norm / max(norm, plan.clip_norm)
        self._tail.update(rate * share / len(rows), rate * plan.proximal)
        return judgement.loss


def _judge(tail: Tail, loss: Loss, samples: _Samples, plan: TrainingPlan) -> Quality:
    total, hits = 0.0, 0.0
    known = True
    rows = samples.judged
    for batch in np.array_split(rows, -(-len(rows) // min(JUDGED_BATCH, plan.batch_size))):
        outputs = tail.forward(take(samples.features, batch), keeps=False)
        judgement = loss.judge(outputs, samples.labels[batch])
        total += judgement.loss
        known = judgement.hits is not None
        hits += judgement.hits or 0
    return Quality(total / len(rows), hits / len(rows) if known else None)
