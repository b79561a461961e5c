# SPDX-License-Identifier: Apache-2.0
"""Training without a network: a `.tflite` and a data file in, a better `.tflite` out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedlearn.anomaly import anomaly_scores, anomaly_threshold
from fedlearn.dataset import Dataset
from fedlearn.durable import write_durably
from fedlearn.errors import ConfigError, DatasetError, MissingFileError, ModelError
from fedlearn.evaluation import Evaluation, evaluate
from fedlearn.model import Model
from fedlearn.probe import probe
from fedlearn.trainer.budget import choose
from fedlearn.trainer.rehearsal import MOST, finished, is_cut_off, rehearsed
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.training import Progress, train
from fedlearn.wire.messages import TrainingPlan

# Called with what is being done now, the share of it that is done (0..1), and a remark.
Show = Callable[[str, float, str], None]


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What a training on this machine made, judged by the real interpreter.

    `measured_on` says on which samples `before` and `after` are measured: the test file's, else the
    held-out ones, else those that were trained on. `best_epoch` (from 1) is the one whose weights
    were kept. `rescaled` counts the tensors that got other scales. `choice` says what a memory
    budget picked. `anomaly_threshold` is the score that 99.5 % of the measured samples stay below,
    for an autoencoder with enough of them that it was not trained on. `unpinned` is that of
    `Training`. `sha256` (hex) is the file's.
    """

    before: Evaluation
    after: Evaluation
    measured_on: str
    samples: int
    epochs: int
    best_epoch: int
    stopped_early: bool
    train_s: float
    seed: int
    changed_weights: int
    rescaled: int
    choice: tuple[str, ...]
    anomaly_threshold: float | None
    unpinned: str
    sha256: str


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
    fixed_scales: bool = False,
    show: Show | None = None,
) -> LocalResult:
    """Train `model_path` on `data_path` and write the result, durably, to `out_path`.

    What is trained is the tail, or what fits into `budget_kib` where that is given. Activations and
    weights that int8 cuts off get other scales, unless with `fixed_scales`.
    """
    for path in (data_path, test_path):
        if path is not None and _same(path, out_path):
            raise ConfigError(f"the result would replace the data in {path}", hint="change --out")
    model = read_model(model_path)
    data = Dataset.load(data_path, model, plan.loss)
    test = Dataset.load(test_path, model, plan.loss) if test_path else None
    choice: tuple[str, ...] = ()
    if budget_kib is None:
        tensors = trainable_tensors(model, tail)
    else:
        chosen = choose(model, plan, budget_kib, len(data))
        tensors, choice = chosen.tensors, chosen.reasons
    start = time.monotonic()
    numbers = [tensor.index for tensor in tensors]
    training = train(model, numbers, data, plan, seed=seed, progress=_steps(show, "training"))
    original = model
    if not fixed_scales and is_cut_off(training.ranges, training.logits):
        model = rehearsed(
            model,
            numbers,
            data,
            plan,
            seed=seed,
            progress=lambda number: _steps(show, f"finding scales, {number} of {MOST} at most"),
        )
        again = _steps(show, "training again, with scales that fit")
        training = train(model, numbers, data, plan, seed=seed, progress=again)
    trained = model.patched(training.values) if fixed_scales else finished(model, training)
    train_s = time.monotonic() - start
    if show:
        show("measuring", 0.0, "")
    judged, measured_on = data, "the training data"
    if test is not None:
        judged, measured_on = test, "the test data"
    elif len(training.held):
        judged, measured_on = data.take(training.held), "the held-out samples"
    result = LocalResult(
        before=evaluate(original.data, judged, loss=plan.loss),
        after=evaluate(trained, judged, loss=plan.loss),
        measured_on=measured_on,
        samples=training.samples,
        epochs=training.epochs,
        best_epoch=training.best_epoch,
        stopped_early=training.stopped_early,
        train_s=train_s,
        seed=seed,
        changed_weights=sum(
            int((values != model.array(index)).sum()) for index, values in training.values.items()
        ),
        rescaled=sum(
            not np.array_equal(old.scales, new.scales)
            for old, new in zip(original.tensors, Model.parse(trained).tensors, strict=True)
        ),
        choice=choice,
        anomaly_threshold=None if judged is data else _threshold(Model.parse(trained), judged),
        unpinned=training.unpinned,
        sha256=hashlib.sha256(trained).hexdigest(),
    )
    write_durably(Path(out_path), trained)
    return result


def _same(path: Path | str, other: Path | str) -> bool:
    try:
        return Path(path).samefile(other)
    except OSError:  # one of them is not there
        return False


def _steps(show: Show | None, what: str) -> Progress | None:
    if show is None:
        return None
    return lambda epoch, done, loss: show(what, done, f"epoch {epoch + 1}  loss {loss:.4f}")


def _threshold(model: Model, unseen: Dataset) -> float | None:
    if unseen.labels is not unseen.inputs:
        return None
    try:
        return anomaly_threshold(anomaly_scores(model, unseen.inputs))
    except DatasetError:  # too few samples to tell
        return None
