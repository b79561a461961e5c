# SPDX-License-Identifier: Apache-2.0
"""The float32 net against the interpreter and finite differences: it is what int8 is held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedlearn.evaluation import real_outputs
from fedlearn.model import Model
from fedlearn_demo.gestures import float_net, people
from fedlearn_demo.gestures.fleet import MODEL_PATH
from fedlearn_demo.gestures.float_net import Plan, Shard
from tests.demo.gestures.made_up import recordings

MODEL = Model.parse(MODEL_PATH.read_bytes())
WEIGHTS = float_net.weights_of(MODEL)


def windows() -> people.Windows:
    return people.trained([each for each in recordings() if each.person == 1])


def softmax(x: NDArray[Any]) -> NDArray[Any]:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def test_it_is_the_net_of_the_file() -> None:
    some = windows()
    wanted = real_outputs(MODEL, some.x[:, :, np.newaxis])
    got = softmax(float_net.logits(WEIGHTS, some.real().x))
    assert np.abs(got - wanted).max() < 0.03
    other = [each.copy() for each in WEIGHTS]
    other[2] = other[2][::-1]
    assert np.abs(softmax(float_net.logits(other, some.real().x)) - wanted).max() > 0.03  # control


@pytest.mark.parametrize("number", range(8))
def test_its_gradients_are_those_of_finite_differences(number: int) -> None:
    shard = windows().real()
    # In double precision, which finite differences need.
    x: Any = shard.x[:4].astype(np.float64)
    y = shard.y[:4]
    weights: list[Any] = [each.astype(np.float64) for each in WEIGHTS]

    def loss(values: list[Any]) -> float:
        likely = softmax(float_net.logits(values, x))[np.arange(len(y)), y]
        return float(-np.log(likely).mean())

    gradient = float_net._backward(weights, x, y)[number]
    rng = np.random.default_rng(number)
    for _ in range(5):
        place = tuple(rng.integers(0, size) for size in weights[number].shape)
        steps = []
        for step in (1e-5, -1e-5):
            moved = [each.copy() for each in weights]
            moved[number][place] += step
            steps.append(loss(moved))
        assert gradient[place] == pytest.approx((steps[0] - steps[1]) / 2e-5, rel=1e-3, abs=1e-6)


def test_training_learns_and_averaging_averages() -> None:
    shard = windows().real()
    trained = float_net.train(WEIGHTS, shard, Plan(5, 16, 0.1), seed=0)
    assert float_net.accuracy(trained, shard) > float_net.accuracy(WEIGHTS, shard) + 0.3
    half = Shard(shard.x[: len(shard.y) // 2], shard.y[: len(shard.y) // 2])
    (mean,) = float_net.federate(WEIGHTS, [half, half], Plan(1, 16, 0.0), 1, seed=0)
    assert all(np.allclose(a, b) for a, b in zip(mean, WEIGHTS, strict=True))
