# SPDX-License-Identifier: Apache-2.0
"""Training without a network: a `.tflite` and a data file in, a better `.tflite` out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedlearn.anomaly import anomaly_scores, anomaly_threshold
from fedlearn.dataset import Dataset
from fedlearn.durable import write_durably
from fedlearn.errors import DatasetError, MissingFileError, ModelError
from fedlearn.evaluation import Evaluation, evaluate
from fedlearn.model import Model
from fedlearn.probe import probe
from fedlearn.trainer.budget import choose
from fedlearn.trainer.rehearsal import finished, is_cut_off, rehearsed
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.training import Progress, train
from fedlearn.wire.messages import TrainingPlan


@dataclass(frozen=True, slots=True)
class LocalResult:
    """Quality on the test data (the training data when there is none) by the real interpreter.

    `rescaled` counts the tensors that got other scales. `choice` says what a memory budget picked.
    `anomaly_threshold` is the score that 99.5 % of the test samples stay below, for an autoencoder
    with enough of them.
    """

    before: Evaluation
    after: Evaluation
    samples: int
    epochs: int
    stopped_early: bool
    train_s: float
    changed_weights: int
    rescaled: int
    choice: tuple[str, ...]
    anomaly_threshold: float | None


def read_model(path: Path | str) -> Model:
    """Parse a model file that a person named, once a child process has tried to run it.

    Raises ModelError also when it cannot be read or crashes the runtime, MissingFileError when it
    is not there.
    """
    try:
        model = Model.parse(Path(path).read_bytes())
        probe(model.data)
        return model
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no model file {path}") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", hint=error.hint) from error


def train_file(
    model_path: Path | str,
    data_path: Path | str,
    out_path: Path | str,
    plan: TrainingPlan,
    *,
    seed: int,
    tail: str = "all",
    budget_kib: int | None = None,
    test_path: Path | str | None = None,
    progress: Progress | None = None,
) -> LocalResult:
    """Train `model_path` on `data_path` and write the result, durably, to `out_path`.

    What is trained is the tail, or what fits into `budget_kib` where that is given.
    """
    model = read_model(model_path)
    data = Dataset.load(data_path, model, plan.loss)
    test = Dataset.load(test_path, model, plan.loss) if test_path else data
    choice: tuple[str, ...] = ()
    if budget_kib is None:
        tensors = trainable_tensors(model, tail)
    else:
        chosen = choose(model, plan, budget_kib, len(data))
        tensors, choice = chosen.tensors, chosen.reasons
    before = evaluate(model.data, test, loss=plan.loss)
    start = time.monotonic()
    numbers = [tensor.index for tensor in tensors]
    training = train(model, numbers, data, plan, seed=seed, progress=progress)
    original = model
    if is_cut_off(training.ranges, training.logits):
        model = rehearsed(model, numbers, data, plan, seed=seed)
        training = train(model, numbers, data, plan, seed=seed, progress=progress)
    trained = finished(model, training)
    train_s = time.monotonic() - start
    write_durably(Path(out_path), trained)
    return LocalResult(
        before=before,
        after=evaluate(trained, test, loss=plan.loss),
        samples=training.samples,
        epochs=training.epochs,
        stopped_early=training.stopped_early,
        train_s=train_s,
        changed_weights=sum(
            int((values != model.array(index)).sum()) for index, values in training.values.items()
        ),
        rescaled=sum(
            not np.array_equal(old.scales, new.scales)
            for old, new in zip(original.tensors, Model.parse(trained).tensors, strict=True)
        ),
        choice=choice,
        anomaly_threshold=_threshold(Model.parse(trained), test),
    )


def _threshold(model: Model, test: Dataset) -> float | None:
    if test.labels is not test.inputs:
        return None
    try:
        return anomaly_threshold(anomaly_scores(model, test.inputs))
    except DatasetError:  # too few samples to tell
        return None
