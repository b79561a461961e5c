# SPDX-License-Identifier: Apache-2.0
"""What a memory budget picks, and that the picked training keeps to it."""

from __future__ import annotations

import gc
import re
import tracemalloc
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedlearn.dataset import Dataset
from fedlearn.errors import ConfigError, ModelError
from fedlearn.model import Model
from fedlearn.trainer import budget
from fedlearn.trainer.budget import Need, choose, measure
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.training import train
from fedlearn.wire.messages import TrainingPlan
from fedlearn_demo.digits import MODEL_PATH, load_train
from tests import models

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
        whole, more = re.findall(r"(\d+)(?: of| more)", choice.reasons[0])
        assert len(choice.tensors) == 2 * int(whole) + int(more)
        assert choice.reasons[2].startswith("with the weights of ")


def test_a_machine_with_less_memory_than_the_budget_trains_less(
    digits: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To measure more than four tensors is too much for it."""

    def poor(model: Model, tensors: Collection[int], *more: Any) -> Need:
        if len(tensors) > most:
            raise MemoryError
        return measure(model, tensors, *more)

    monkeypatch.setattr(budget, "measure", poor)
    most = 4
    choice = choose(digits, PLAN, 1 << 20, SAMPLES)
    assert len(choice.tensors) == 4
    assert choice.reasons[2].startswith("for the weights of ")
    most = 0
    with pytest.raises(MemoryError):
        choose(digits, PLAN, 1 << 20, SAMPLES)


def test_the_last_resort_is_the_last_bias(digits: Model) -> None:
    # Of a layer with so many weights that its bias alone needs clearly less.
    weight, bias = allowed = _numbers(digits, "dense")[:2]
    least = measure(digits, [bias], PLAN, SAMPLES).total
    assert least + 2 * NOISE < measure(digits, [weight, bias], PLAN, SAMPLES).total
    choice = choose(digits, PLAN, least + NOISE, SAMPLES, allowed)
    assert [tensor.index for tensor in choice.tensors] == [bias]
    with pytest.raises(ConfigError, match="the least needs"):
        choose(digits, PLAN, least - NOISE, SAMPLES, allowed)


def test_only_what_is_allowed_is_picked(digits: Model) -> None:
    allowed = _numbers(digits, "dense")
    choice = choose(digits, PLAN, 1 << 20, SAMPLES, allowed)
    assert [tensor.index for tensor in choice.tensors] == allowed


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize(
    ("name", "tail"),
    [
        ("digits", "last"),
        ("digits", "dense"),
        ("digits", "all"),
        ("digits", "biases"),
        ("mobilenet", "4"),
        ("mobilenet", "all"),
        ("mobilenet", "biases"),
    ],
)
def test_what_is_measured_is_what_training_needs(name: str, tail: str, batch: int) -> None:
    """The oracle is the peak of a real training, as tracemalloc counts it."""
    model = Model.parse((MODEL_PATH if name == "digits" else models.MOBILENET_PATH).read_bytes())
    x, y = load_train() if name == "digits" else models.load_train()
    data = Dataset.from_arrays(x[:40], y[:40], model)
    numbers = _numbers(model, "all" if tail == "biases" else tail)
    if tail == "biases":
        numbers = [number for number in numbers if model.tensors[number].dtype == "int32"]
    plan = replace(PLAN, batch_size=batch)
    train(model, numbers, data, replace(plan, steps=1), seed=1)  # what is imported and cached once
    peaks = []
    for _ in range(2):  # the process has other threads, which allocate now and then
        gc.collect()
        tracemalloc.start()
        train(model, numbers, data, plan, seed=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    peak = min(peaks)
    told = measure(model, numbers, plan, len(data)).total * 1024
    assert 0.8 * told < peak < 1.1 * told + NOISE * 1024


def test_a_batch_larger_than_the_data_is_one_of_all(digits: Model) -> None:
    numbers = _numbers(digits, "all")
    huge = measure(digits, numbers, replace(PLAN, batch_size=1 << 40), 4).total
    assert abs(huge - measure(digits, numbers, replace(PLAN, batch_size=4), 4).total) <= NOISE
    with pytest.raises(ModelError, match="does not fit"):
        measure(digits, numbers, replace(PLAN, batch_size=1 << 40), 1 << 40)


@pytest.mark.parametrize("name", ["digits", "mobilenet"])
def test_a_forward_pass_for_biases_keeps_no_operands(name: str) -> None:
    """The patches and copies of the input that only a weight's gradient needs."""
    model = Model.parse((MODEL_PATH if name == "digits" else models.MOBILENET_PATH).read_bytes())
    numbers = [n for n in _numbers(model, "all") if model.tensors[n].dtype == "int32"]
    operands = {"_patches", "_padded", "_x"}
    for chosen, found in ((numbers, False), (_numbers(model, "all"), True)):
        tail = Tail(model, chosen)
        kinds = {type(each) for each in tail.weighted}
        shape = model.tensors[model.entry].shape[1:]
        outputs = tail.forward((np.zeros((2, *shape), np.int8),))
        kept = [operands & set(vars(each)) for each in tail.weighted]
        assert [bool(each) for each in kept] == [found] * len(kept)
        tail.backward(np.ones_like(outputs))
        tail.forward((np.zeros((2, *shape), np.int8),), keeps=False)
        assert not any({*each.kept} & set(vars(each)) for each in tail.layers)
    assert len(kinds) == (2 if name == "digits" else 3)


def test_a_sparse_choice_trains_what_it_names(digits: Model, digits_train: Dataset) -> None:
    data = Dataset(digits_train.inputs[:SAMPLES], digits_train.labels[:SAMPLES])
    last = measure(digits, _numbers(digits, "last"), PLAN, SAMPLES).total
    choice = choose(digits, PLAN, last + 60, SAMPLES)
    numbers = [tensor.index for tensor in choice.tensors]
    training = train(digits, numbers, data, PLAN, seed=1)
    assert set(training.values) == set(numbers)
    assert training.after.loss < training.before.loss
