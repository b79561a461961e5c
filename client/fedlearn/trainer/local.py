# SPDX-License-Identifier: Apache-2.0
"""Training without a network: a `.tflite` and a data file in, a better `.tflite` out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from fedlearn.dataset import Dataset
from fedlearn.durable import write_durably
from fedlearn.errors import MissingFileError, ModelError
from fedlearn.model import Model
from fedlearn.runtime import Evaluation, evaluate
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.training import Progress, train
from fedlearn.wire.messages import TrainingPlan


@dataclass(frozen=True, slots=True)
class LocalResult:
    """Quality on the test data (the training data when there is none) by the real interpreter."""

    before: Evaluation
    after: Evaluation
    samples: int
    train_s: float
    changed_weights: int


def read_model(path: Path | str) -> Model:
    """Parse a model file; ModelError also when it cannot be read, MissingFileError if absent."""
    try:
        return Model.parse(Path(path).read_bytes())
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
    *,
    tail: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    test_path: Path | str | None = None,
    progress: Progress | None = None,
) -> LocalResult:
    """Train `model_path` on `data_path` and write the result, durably, to `out_path`."""
    model = read_model(model_path)
    tensors = [tensor.index for tensor in trainable_tensors(model, tail)]
    data = Dataset.load(data_path, model)
    test = Dataset.load(test_path, model) if test_path else data
    before = evaluate(model.data, test)
    plan = TrainingPlan("softmax_cross_entropy", epochs, batch_size, learning_rate)
    start = time.monotonic()
    training = train(model, tensors, data, plan, seed=seed, progress=progress)
    train_s = time.monotonic() - start
    trained = model.patched(training.values)
    write_durably(Path(out_path), trained)
    changed = sum(
        int((values != model.array(index)).sum()) for index, values in training.values.items()
    )
    return LocalResult(before, evaluate(trained, test), training.samples, train_s, changed)
