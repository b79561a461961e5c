# SPDX-License-Identifier: Apache-2.0
"""This project's trainer, as the device's trainer process runs it."""

from __future__ import annotations

from pathlib import Path

from fedlearn.trainer.lean import import_lean
from tests.benchmarks.case import BATCH, LEARNING_RATE, SEED, Case, Meter


def run(case: Case, data: Path, epochs: int) -> dict[str, object]:
    """Train once; the imports are those of `fedlearn.trainer.worker`, in its order."""
    import_lean()
    # What the process of a device has in memory: the codec, the deltas, the jobs.
    import fedlearn.trainer.worker  # noqa: F401
    from fedlearn.dataset import Dataset
    from fedlearn.errors import UnsupportedOperatorError
    from fedlearn.model import Model
    from fedlearn.trainer.tails import trainable_tensors
    from fedlearn.trainer.training import train
    from fedlearn.wire.messages import TrainingPlan

    model = Model.parse(case.model.read_bytes())
    try:
        tensors = [tensor.index for tensor in trainable_tensors(model, str(case.layers))]
    except UnsupportedOperatorError as error:
        return {"absent": error.message}
    plan = TrainingPlan("softmax_cross_entropy", epochs, BATCH, LEARNING_RATE)
    meter = Meter(epochs)
    train(model, tensors, Dataset.load(data, model), plan, seed=SEED, progress=meter)
    return meter.result()
