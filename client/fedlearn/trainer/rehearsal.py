# SPDX-License-Identifier: Apache-2.0
"""Scales for a training on this machine's own data, found by rehearsing it.

A file that was calibrated on an untrained net holds activations that training outgrows within an
epoch. Where a training ends with many values cut off, short ones on the same file show what its
activations and weights are going to be, and the file gets scales for them before it is trained
again. A file that fits costs nothing: it is trained once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from fedlearn.dataset import Dataset
from fedlearn.model import Model
from fedlearn.model.fit import fitted
from fedlearn.trainer.training import Progress, Training, train
from fedlearn.wire.messages import ActivationRange, TrainingPlan

# Behind a training that cut off more of an activation than this, another one gains something.
TOO_MUCH = 0.02
# A rehearsal is one epoch of so many samples at most, and one in which a range may grow to four
# times its width: after this many it is as good as it gets.
SAMPLES = 1024
MOST = 6


def is_cut_off(ranges: Sequence[ActivationRange], logits: int | None) -> bool:
    """Whether training would be better with other scales.

    The tensor `logits` does not count: the loss is taken before int8 cuts it off.
    """
    return any(each.clipped > TOO_MUCH for each in ranges if each.index != logits)


def rehearsed(
    model: Model,
    tensors: Collection[int],
    data: Dataset,
    plan: TrainingPlan,
    *,
    seed: int,
    progress: Callable[[int], Progress | None] = lambda _: None,
) -> Model:
    """The model, not trained, with scales that hold what training makes of it.

    `progress` makes the one of each rehearsal, counted from 1.
    """
    short = replace(plan, epochs=1, steps=0, patience=0, validation=0.0)
    for number in range(1, MOST + 1):
        training = train(
            model,
            tensors,
            data,
            short,
            seed=seed,
            max_samples=SAMPLES,
            progress=progress(number),
        )
        weights = {
            index: (model.array(index).astype(np.float64), values.astype(np.float64))
            for index, values in training.values.items()
            if values.dtype == np.int8
        }
        rescaled = fitted(model, training.ranges, weights)
        if rescaled is None:
            break
        model = Model.parse(rescaled.data)
    return model


def finished(model: Model, training: Training) -> bytes:
    """The trained file, with wider ranges for what it cuts off too often."""
    trained = Model.parse(model.patched(training.values))
    rescaled = fitted(trained, [each for each in training.ranges if each.clipped > TOO_MUCH], {})
    return trained.data if rescaled is None else rescaled.data
