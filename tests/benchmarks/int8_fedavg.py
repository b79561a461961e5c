# SPDX-License-Identifier: Apache-2.0
"""Federated averaging in int8, in one process: the project's own code without the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.dataset import Dataset
from fedlearn.evaluation import evaluate
from fedlearn.model import Model
from fedlearn.trainer.order import device_seed
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.training import train
from fedlearn.wire.delta import decode_delta, encode_delta, encode_difference
from fedlearn.wire.messages import ActivationRange, TrainingPlan
from fedlearn_aggregator.aggregation import DeltaSum
from fedlearn_aggregator.optimizers import OptimizerSettings, step
from fedlearn_aggregator.requantise import edges, first_state, grid_scales, next_model
from fedlearn_aggregator.robust import AggregationSettings, aggregate, norm
from fedlearn_aggregator.scales import fit, merge
from tests.benchmarks.setting import Setting, round_seed

Shard = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Update:
    """What a client sends of a round on `model`."""

    deltas: dict[int, NDArray[np.int32]]
    ranges: tuple[ActivationRange, ...]
    model: Model


@dataclass(frozen=True, slots=True)
class Int8Round:
    """Test accuracy (0..1) by the real interpreter, and bytes: deltas by client, next model."""

    accuracy: float
    delta_bytes: tuple[int, ...]
    difference_bytes: int


def honest(_: int, update: Update) -> Update:
    """What the device trained."""
    return update


def run(
    model_bytes: bytes,
    shards: Sequence[Shard],
    test: Shard,
    setting: Setting,
    *,
    aggregation: AggregationSettings = AggregationSettings(),  # noqa: B008 - it is frozen
    tamper: Callable[[int, Update], Update] = honest,
) -> Iterator[Int8Round]:
    """Yield each round of training the whole network.

    `tamper` gets each client's number and update, and returns what it sends.
    """
    model = Model.parse(model_bytes)
    tensors = trainable_tensors(model, "all")
    indices = [tensor.index for tensor in tensors]
    data = [Dataset.from_arrays(x, y, model) for x, y in shards]
    judge = Dataset.from_arrays(*test, model)
    plan = TrainingPlan(
        "softmax_cross_entropy",
        setting.epochs,
        setting.batch_size,
        setting.learning_rate,
        fraction_bits=setting.fraction_bits,
        errors=setting.errors,
    )
    state = first_state(model, tensors)
    for number in range(setting.rounds):
        total = DeltaSum(tensors)
        sizes: list[int] = []
        sent: list[Update] = []
        steps = grid_scales(model, tensors)
        for client, shard in enumerate(data):
            seed = device_seed(round_seed(setting, number), f"client-{client}")
            training = train(model, indices, shard, plan, seed=seed)
            trained = training.values
            deltas = {}
            sizes.append(0)
            for tensor in tensors:
                change = trained[tensor.index].astype(np.int64) - model.array(tensor.index)
                encoding, body = encode_delta(change)
                sizes[-1] += len(body)
                values = decode_delta(encoding, body, change.size, dtype=tensor.dtype)
                deltas[tensor.index] = values.reshape(tensor.shape)
            sent.append(tamper(client, Update(deltas, training.ranges, model)))
            total.add(len(shard), sent[-1].deltas)
        settings, before = OptimizerSettings(), state
        mean = total.mean()
        if not aggregation.is_plain:
            openers = [each.deltas.get for each in sent]
            norms = [norm(each.deltas, steps) for each in sent]
            mean = aggregate(aggregation, tensors, openers, norms, steps)
        state = step(settings, before, mean, steps, edges(tensors))
        if setting.rescale:
            ranges = merge([each.ranges for each in sent])
            state, data_after = fit(model, tensors, before, state, ranges=ranges, settings=settings)
        else:
            data_after = next_model(model, tensors, state)
        _, difference = encode_difference(model.data, data_after)
        model = Model.parse(data_after)
        accuracy = evaluate(model.data, judge).known_accuracy
        yield Int8Round(accuracy, tuple(sizes), len(difference))
