# SPDX-License-Identifier: Apache-2.0
"""Both sides of the accuracy benchmark start from the same model, and both learn."""

import pytest

from fedlearn.model import Model
from fedlearn_demo.digits import MODEL_PATH, load_test, load_train
from tests.benchmarks import int8_fedavg
from tests.benchmarks.accuracy import float_weights
from tests.benchmarks.setting import Setting
from tests.models import UNTRAINED_PATH

START = 0.484
X, Y = load_train()
SHARDS = [(X[i::8][:200], Y[i::8][:200]) for i in range(2)]


def setting(rate: float) -> Setting:
    return Setting(seed=0, learning_rate=rate, epochs=1, rounds=2, clients=2)


def test_int8_side() -> None:
    data = MODEL_PATH.read_bytes()
    rounds = list(int8_fedavg.run(data, SHARDS, load_test(), setting(0.05)))
    assert rounds[-1].accuracy > START + 0.1
    assert all(0 < size < 30_000 for each in rounds for size in each.delta_bytes)
    still = list(int8_fedavg.run(data, SHARDS, load_test(), setting(1e-12)))  # control
    assert [each.accuracy for each in still] == [START, START]


def test_float_weights() -> None:
    weights = float_weights(Model.parse(MODEL_PATH.read_bytes()))
    assert [weight.shape for weight in weights] == [
        (8, 3, 3, 1),
        (8,),
        (16, 3, 3, 8),
        (16,),
        (64, 784),
        (64,),
        (10, 64),
        (10,),
    ]


def test_float_side() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: `make test-benchmarks`")
    from tests.benchmarks import float_fedavg

    weights = float_weights(Model.parse(MODEL_PATH.read_bytes()))
    still = list(float_fedavg.run(weights, SHARDS, load_test(), setting(1e-12)))
    assert still == pytest.approx([START, START], abs=0.01)
    assert list(float_fedavg.run(weights, SHARDS, load_test(), setting(0.05)))[-1] > START + 0.1


def test_an_untrained_file_learns_with_rescaling_only() -> None:
    data = UNTRAINED_PATH.read_bytes()
    found = []
    for rescale in (True, False):
        run = Setting(seed=0, learning_rate=0.2, epochs=2, rounds=6, clients=2, rescale=rescale)
        shards = [(X[i::4], Y[i::4]) for i in range(2)]
        found.append(list(int8_fedavg.run(data, shards, load_test(), run))[-1].accuracy)
    assert found[0] > 0.85
    assert found[1] < 0.7  # the control
