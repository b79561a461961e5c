# SPDX-License-Identifier: Apache-2.0
"""What a plan may ask for beside epochs and a rate: each option does what its name says."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedlearn.dataset import Dataset
from fedlearn.errors import DatasetError, TrainerError
from fedlearn.evaluation import evaluate
from fedlearn.model import Model
from fedlearn.trainer.loss import SoftmaxCrossEntropy
from fedlearn.trainer.selftest import match
from fedlearn.trainer.tail import Tail, Values
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.training import Training, train
from fedlearn.trainer.weighted import WeightedLayer
from fedlearn.wire.messages import TrainingPlan

PLAN = TrainingPlan("softmax_cross_entropy", epochs=2, batch_size=32, learning_rate=0.05)
SAMPLES = 640


@pytest.fixture(scope="module")
def data(digits_train: Dataset) -> Dataset:
    return Dataset(digits_train.inputs[:SAMPLES], digits_train.labels[:SAMPLES])


def _train(model: Model, data: Dataset, plan: TrainingPlan = PLAN, **options: Any) -> Training:
    numbers = [tensor.index for tensor in trainable_tensors(model, "dense")]
    return train(model, numbers, data, plan, seed=7, **options)


def _digest(model: Model, values: Values) -> str:
    return hashlib.sha256(model.patched(values)).hexdigest()


def _moved(model: Model, values: Values) -> float:
    """The l2 norm of the way that the weights went, in real units."""
    total = 0.0
    for number, array in values.items():
        if array.dtype == np.int8:
            tensor = model.tensors[number]
            change = (array.astype(np.float64) - model.array(number)).reshape(len(array), -1)
            total += float(np.square(change * tensor.scales.reshape(-1, 1)).sum())
    return total**0.5


def test_steps_are_the_steps_of_the_epochs(digits: Model, data: Dataset) -> None:
    batches = SAMPLES // PLAN.batch_size
    epochs = _train(digits, data)
    steps = _train(digits, data, replace(PLAN, epochs=1, steps=2 * batches))
    assert _digest(digits, steps.values) == _digest(digits, epochs.values)
    assert steps.epochs == epochs.epochs == 2
    fewer = _train(digits, data, replace(PLAN, steps=5))
    assert fewer.epochs == 1
    assert 0 < _moved(digits, fewer.values) < 0.8 * _moved(digits, epochs.values)


def test_a_falling_rate_moves_weights_less(digits: Model, data: Dataset) -> None:
    ways = [
        _moved(digits, _train(digits, data, replace(PLAN, schedule=name)).values)
        for name in ("constant", "cosine", "linear")
    ]
    assert ways[1] < 0.93 * ways[0]
    assert ways[2] < 0.93 * ways[0]


def test_the_proximal_term_holds_the_model_back(digits: Model, data: Dataset) -> None:
    ways = [
        _moved(digits, _train(digits, data, replace(PLAN, proximal=mu)).values)
        for mu in (0.0, 1.0, 10.0)
    ]
    assert ways[0] > 1.3 * ways[1] > 1.7 * ways[2] > 0


def test_a_pull_past_the_start_is_refused(digits: Model, data: Dataset) -> None:
    """lr mu = 1 goes all of the way back in a step, more of it swings ever wider."""
    for mu, refused in ((19.9, False), (20.0, True), (50.0, True)):
        plan = replace(PLAN, proximal=mu, steps=1)
        assert plan.overshoots == refused
        if refused:
            with pytest.raises(TrainerError, match="below 1"):
                _train(digits, data, plan)
        else:
            _train(digits, data, plan)


def test_the_norm_is_added_up_one_by_one(digits: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.12 on sum() would not lose the ones."""
    tail = Tail(digits, [tensor.index for tensor in trainable_tensors(digits, "all")])
    squares = iter([2.0**53, 1.0, 1.0, 1.0])
    monkeypatch.setattr(WeightedLayer, "gradient_square", lambda _: next(squares))
    monkeypatch.setattr("builtins.sum", math.fsum)
    assert tail.gradient_norm() == 2.0**26.5


def test_the_gradients_norm_is_that_of_the_real_gradients(digits: Model, data: Dataset) -> None:
    """Against float64 of the layers' integers and scales, apart from the 8 bits it is kept in."""
    numbers = [tensor.index for tensor in trainable_tensors(digits, "all")]
    tail = Tail(digits, numbers)
    match(tail, digits, data.inputs)
    outputs = tail.forward((data.inputs[:32],))
    tail.backward(SoftmaxCrossEntropy().judge(outputs, data.labels[:32]).errors)
    total = 0.0
    for layer in tail.layers:
        if isinstance(layer, WeightedLayer):
            assert layer._weight_gradient is not None
            assert layer._bias_gradient is not None
            real = layer._error_scale * layer.input.scale
            total += float(np.square(layer._weight_gradient.astype(np.float64) * real).sum())
            total += float(np.square(layer._bias_gradient * layer._error_scale).sum())
    assert tail.gradient_norm() == pytest.approx(total**0.5, rel=0.02)


def test_a_clipped_step_is_as_long_as_it_may_be(digits: Model, data: Dataset) -> None:
    """One step on all samples, long enough that rounding to the grid hardly shows."""
    one = replace(PLAN, steps=1, batch_size=SAMPLES, learning_rate=2.0)
    free = _moved(digits, _train(digits, data, one).values)
    limit = free / 2.0 / 4
    clipped = _moved(digits, _train(digits, data, replace(one, clip_norm=limit)).values)
    # Biases are in the norm, too, so the weights' part is shorter.
    assert 0.5 * free / 4 < clipped < 1.1 * free / 4
    loose = _train(digits, data, replace(one, clip_norm=1e6))
    assert _moved(digits, loose.values) == free  # control


def test_a_rare_class_with_weight_is_found_more_often(
    digits: Model, digits_train: Dataset, digits_test: Dataset
) -> None:
    """In the mean of some seeds: of twelve samples a training now and then makes nothing."""
    often = np.flatnonzero(digits_train.labels != 9)[:1200]
    rare = np.flatnonzero(digits_train.labels == 9)[:12]
    few = digits_train.take(np.concatenate([often, rare]))
    nines = digits_test.take(np.flatnonzero(digits_test.labels == 9))
    plan = replace(PLAN, epochs=6)
    weighted = replace(plan, class_weights=(*[1.0] * 9, 5.0))
    numbers = [tensor.index for tensor in trainable_tensors(digits, "dense")]
    found = [
        np.mean(
            [
                evaluate(
                    digits.patched(train(digits, numbers, few, each, seed=seed).values), nines
                ).accuracy
                or 0.0
                for seed in range(4)
            ]
        )
        for each in (plan, weighted)
    ]
    assert found[1] > found[0] + 0.2


def test_held_out_samples_are_judged_and_not_trained(digits: Model, data: Dataset) -> None:
    plan = replace(PLAN, validation=0.25, epochs=6)
    honest = _train(digits, data, plan)
    assert honest.samples == SAMPLES * 3 // 4
    rng = np.random.default_rng(0)
    noise = Dataset(data.inputs, rng.integers(0, 10, SAMPLES))
    plan = replace(plan, epochs=40, learning_rate=0.1)
    learnt = _train(digits, noise, plan)
    assert learnt.after.accuracy is not None
    assert learnt.after.accuracy < 0.25, "labels of held-out samples cannot be learnt"
    told = _train(digits, noise, replace(plan, validation=0.0))  # control
    assert (told.after.accuracy or 0) > 0.4


def test_patience_ends_the_training_and_keeps_the_best_epoch(digits: Model, data: Dataset) -> None:
    rng = np.random.default_rng(0)
    noise = Dataset(data.inputs, rng.integers(0, 10, SAMPLES))
    plan = replace(PLAN, validation=0.25, epochs=20)
    whole = _train(digits, noise, plan)
    early = _train(digits, noise, replace(plan, patience=2))
    assert early.stopped_early
    assert not whole.stopped_early
    assert early.epochs < 20
    assert early.after.loss < whole.after.loss
    # The best epoch was two before the end; a training of that length gives the same bits.
    best = _train(digits, noise, replace(plan, epochs=early.epochs - 2))
    assert _digest(digits, early.values) == _digest(digits, best.values)


def test_too_few_samples_to_hold_some_out(digits: Model, data: Dataset) -> None:
    with pytest.raises(DatasetError, match="cannot be split"):
        _train(digits, data.take(np.arange(3)), replace(PLAN, validation=0.1))


def _learns(digits: Model, train_set: Dataset, test: Dataset, plan: TrainingPlan) -> float:
    result = _train(digits, train_set, plan)
    return evaluate(digits.patched(result.values), test).accuracy or 0.0


@pytest.mark.parametrize(
    "change", [{"fraction_bits": 0}, {"fraction_bits": 4}, {"errors": "float32"}]
)
def test_the_other_arithmetics_learn_as_well(
    digits: Model, digits_train: Dataset, digits_test: Dataset, change: dict[str, Any]
) -> None:
    plain = _learns(digits, digits_train, digits_test, PLAN)
    other = _learns(digits, digits_train, digits_test, replace(PLAN, **change))
    assert other > plain - 0.03
    assert plain > 0.85


def test_stochastic_rounding_is_the_seeds(digits: Model, data: Dataset) -> None:
    plan = replace(PLAN, fraction_bits=0)
    first, second = (_digest(digits, _train(digits, data, plan).values) for _ in range(2))
    assert first == second != _digest(digits, _train(digits, data).values)


def test_a_personal_copy_is_trained_further(digits: Model, data: Dataset) -> None:
    plan = replace(PLAN, epochs=1, validation=0.2, schedule="cosine")
    plain, both = _train(digits, data, plan), _train(digits, data, plan, personal_epochs=3)
    assert plain.personal is None
    assert both.personal is not None
    assert _digest(digits, both.values) == _digest(digits, plain.values), "the update is the same"
    assert both.personal.quality.loss < both.after.loss < both.before.loss
    assert _moved(digits, both.personal.values) > _moved(digits, both.values)


def test_progress_counts_the_personal_epochs(digits: Model, data: Dataset) -> None:
    seen: list[float] = []
    _train(digits, data, personal_epochs=2, progress=lambda _epoch, done, _loss: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) == 4 * SAMPLES // PLAN.batch_size
