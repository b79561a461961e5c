# SPDX-License-Identifier: Apache-2.0
"""How good the models are, by the real interpreter, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedlearn.dataset import Dataset
from fedlearn.evaluation import evaluate
from fedlearn.model import Model
from fedlearn.trainer.local import train_file
from fedlearn.wire.messages import LOSSES, TrainingPlan
from fedlearn_demo.gestures import float_net
from fedlearn_demo.gestures.float_net import Plan, Shard
from fedlearn_demo.gestures.people import Windows
from fedlearn_demo.gestures.settings import Settings


@dataclass(frozen=True, slots=True)
class Choice:
    """The figures of one choice of the held out: accuracies in 0..1."""

    held_out: tuple[int, int]
    global_heldout: float  # of the federated int8 model, on people whom no device has seen
    float32_heldout: float  # of float32 federated averaging after the same rounds, on the same
    alone_heldout: float  # of each device's own model, on the same; mean of the devices
    global_seen: float  # on the later part of the devices' own recordings
    personalised_seen: float  # of each device's own copy of the federated model, on its own
    alone_seen: float  # of each device's own model, on its own
    fewshot_personalised: float  # a new person's few windows, from the federated model
    fewshot_alone: float  # the same windows, from the starting model
    global_by_round: tuple[float, ...]  # global_heldout
    float32_by_round: tuple[float, ...]  # float32_heldout


def accuracy(model: Path | bytes, windows: Windows) -> float:
    """How often the file is right about these windows, 0..1."""
    data = model if isinstance(model, bytes) else model.read_bytes()
    dataset = Dataset.from_arrays(windows.x, windows.y, Model.parse(data))
    return evaluate(data, dataset).known_accuracy


def weighted(models: Sequence[Path], windows: Sequence[Windows]) -> float:
    """How often each model is right about its own windows; every window counts the same."""
    hits = [accuracy(m, w) * len(w) for m, w in zip(models, windows, strict=True)]
    return sum(hits) / sum(len(each) for each in windows)


def alone(model: Path, ring: Path, out: Path, settings: Settings) -> None:
    """Train a device's model by itself, on its own ring, as long as in all rounds."""
    plan = TrainingPlan(
        LOSSES[0], settings.alone_epochs, settings.batch_size, settings.learning_rate
    )
    train_file(model, ring, out, plan, seed=settings.seed)


def few(model: Path, windows: Windows, out: Path, settings: Settings) -> None:
    """Train a model further on the few windows that a new person has labelled."""
    data = out.with_suffix(".npz")
    np.savez(data, x=windows.x, y=windows.y)
    plan = TrainingPlan(
        LOSSES[0], settings.few_epochs, settings.batch_size, settings.few_learning_rate
    )
    train_file(model, data, out, plan, seed=settings.seed)


def float32(
    model: Path,
    shards: Sequence[Shard],
    held_out: Shard,
    settings: Settings,
    pause: Callable[[], None],
) -> tuple[float, ...]:
    """Accuracy on the held out after each round of float32 federated averaging."""
    plan = Plan(settings.epochs, settings.batch_size, settings.float_learning_rate)
    start = float_net.weights_of(Model.parse(model.read_bytes()))
    rounds = float_net.federate(
        start, shards, plan, settings.rounds, seed=settings.seed, pause=pause
    )
    return tuple(float_net.accuracy(weights, held_out) for weights in rounds)
