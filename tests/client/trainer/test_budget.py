# SPDX-License-Identifier: Apache-2.0
"""What a memory budget picks, and that the picked training keeps to it."""

from __future__ import annotations

import tracemalloc

import pytest

from fedlearn.dataset import Dataset
from fedlearn.errors import TrainerError
from fedlearn.model import Model
from fedlearn.trainer.budget import choose, measure
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.training import train
from fedlearn.wire.messages import TrainingPlan

PLAN = TrainingPlan("softmax_cross_entropy", epochs=1, batch_size=16, learning_rate=0.05)
SAMPLES = 200
# KiB of Python objects by which one measurement differs from the next.
NOISE = 8


def _numbers(model: Model, tail: str) -> list[int]:
    return [tensor.index for tensor in trainable_tensors(model, tail)]


def test_a_large_budget_trains_everything(digits: Model) -> None:
    choice = choose(digits, PLAN, 1 << 20, SAMPLES)
    assert choice.tensors == trainable_tensors(digits, "all")
    assert "4 of 4 layers" in choice.reasons[0]


def test_smaller_budgets_train_less_and_keep_to_it(digits: Model) -> None:
    sizes = {
        tail: measure(digits, _numbers(digits, tail), PLAN, SAMPLES).total
        for tail in ("last", "dense", "all")
    }
    assert sizes["last"] < sizes["dense"] < sizes["all"]
    for tail, size in sizes.items():
        choice = choose(digits, PLAN, size + NOISE, SAMPLES)
        assert choice.need.total <= size + NOISE
        assert set(_numbers(digits, tail)) <= {tensor.index for tensor in choice.tensors}
    tensors = choose(digits, PLAN, sizes["dense"] - NOISE, SAMPLES).tensors
    assert _numbers(digits, "dense")[0] not in [tensor.index for tensor in tensors]


def test_what_is_left_goes_to_biases(digits: Model) -> None:
    last = measure(digits, _numbers(digits, "last"), PLAN, SAMPLES).total
    dense = measure(digits, _numbers(digits, "dense"), PLAN, SAMPLES).total
    choices = [
        choose(digits, PLAN, kib, SAMPLES) for kib in range(last, dense, (dense - last) // 6)
    ]
    extra = [choice for choice in choices if len(choice.tensors) > 2]
    assert extra, "between the two there is room for the bias of the layer before"
    for choice in extra:
        assert choice.tensors[0].dtype == "int32"
        assert "1 more their biases alone" in choice.reasons[0]
        assert choice.reasons[2].startswith("with the weights of ")


def test_the_last_resort_is_the_last_bias(digits: Model) -> None:
    weight, bias = _numbers(digits, "last")
    least = measure(digits, [bias], PLAN, SAMPLES).total
    if least + 2 * NOISE < measure(digits, [weight, bias], PLAN, SAMPLES).total:
        assert [t.index for t in choose(digits, PLAN, least + NOISE, SAMPLES).tensors] == [bias]
    with pytest.raises(TrainerError, match="the least needs"):
        choose(digits, PLAN, least - NOISE, SAMPLES)


def test_only_what_is_allowed_is_picked(digits: Model) -> None:
    allowed = _numbers(digits, "dense")
    choice = choose(digits, PLAN, 1 << 20, SAMPLES, allowed)
    assert [tensor.index for tensor in choice.tensors] == allowed


@pytest.mark.parametrize("tail", ["last", "dense", "all"])
def test_what_is_measured_is_what_training_needs(
    digits: Model, digits_train: Dataset, tail: str
) -> None:
    """The oracle is the peak of a real training, as tracemalloc counts it."""
    data = Dataset(digits_train.inputs[:SAMPLES], digits_train.labels[:SAMPLES])
    numbers = _numbers(digits, tail)
    train(digits, numbers, data, PLAN, seed=1)  # what is imported and cached once
    tracemalloc.start()
    train(digits, numbers, data, PLAN, seed=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    told = measure(digits, numbers, PLAN, SAMPLES).total * 1024
    # Calibration has copies of the model's bytes, 57 kB each.
    assert 0.7 * told < peak < 1.3 * told + 4 * len(digits.data)


def test_a_sparse_choice_trains_what_it_names(digits: Model, digits_train: Dataset) -> None:
    data = Dataset(digits_train.inputs[:SAMPLES], digits_train.labels[:SAMPLES])
    last = measure(digits, _numbers(digits, "last"), PLAN, SAMPLES).total
    choice = choose(digits, PLAN, last + 60, SAMPLES)
    numbers = [tensor.index for tensor in choice.tensors]
    training = train(digits, numbers, data, PLAN, seed=1)
    assert set(training.values) == set(numbers)
    assert training.after.loss < training.before.loss
