# SPDX-License-Identifier: Apache-2.0
"""What a trained tail's activations would have to hold, against the real interpreter.

The oracle is a copy of the file in which one activation has a grid so wide that nothing is cut off:
what the interpreter puts there are the values that the meter must have seen, to a step of it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tflite
from numpy.typing import NDArray

from fedlearn.dataset import Dataset
from fedlearn.model import Model
from fedlearn.model.rescale import Grid, held, rescale
from fedlearn.runtime import Session
from fedlearn.trainer.prefix import Prefix
from fedlearn.trainer.ranges import RangeMeter
from fedlearn.trainer.selftest import match
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.training import train
from fedlearn.wire.messages import ActivationRange, TrainingPlan
from fedlearn_demo.digits import load_train
from tests import models
from tests.client.networks import convolution, layer

PLAN = TrainingPlan("softmax_cross_entropy", epochs=1, batch_size=16, learning_rate=0.1)


def numbers(model: Model, tail: str) -> list[int]:
    return [tensor.index for tensor in trainable_tensors(model, tail)]


def measured(model: Model, inputs: NDArray[np.int8], tail: str) -> dict[int, ActivationRange]:
    trained = Tail(model, numbers(model, tail))
    match(trained, model, inputs)
    with RangeMeter(trained.layers) as meter:
        trained.forward(Prefix(model, trained.entries, inputs, batch=64).features(inputs))
    return {each.index: each for each in meter.ranges()}


@pytest.fixture(scope="module")
def mobilenet() -> Model:
    return Model.parse(models.MOBILENET_PATH.read_bytes())


def _digits(count: int, model: Model) -> Dataset:
    x, y = load_train()
    return Dataset.from_arrays(x[:count], y[:count], model)


def trained_untrained() -> Model:
    """The file calibrated on an untrained net, trained a little: much of it is cut off."""
    model = Model.parse(models.UNTRAINED_PATH.read_bytes())
    data = _digits(600, model)
    return Model.parse(
        model.patched(train(model, numbers(model, "all"), data, PLAN, seed=1).values)
    )


@pytest.mark.parametrize("name", ["untrained", "mobilenet"])
def test_every_range_is_what_a_wide_grid_holds(name: str, mobilenet: Model) -> None:
    model = mobilenet if name == "mobilenet" else trained_untrained()
    x = _digits(48, model).inputs
    found = measured(model, x, "all" if name == "untrained" else "12")
    kinds = {op.name for op in model.operators if op.outputs[0] in found}
    assert kinds >= ({"ADD", "MEAN", "CONV_2D"} if name == "mobilenet" else {"FULLY_CONNECTED"})
    cut = compared = 0
    for index, each in found.items():
        low, high = held(model.tensors[index])
        wide = rescale(model, {index: (4 * low, 4 * high)})
        assert not wide.refused
        if wide.grids.get(index, Grid(0.0, 0)).scale < model.tensors[index].scale * 1.1:
            continue  # behind a ReLU6 there is nothing more
        scale, zero = wide.grids[index].scale, wide.grids[index].zero_point
        raw = Session(Model.parse(wide.data).cut([index])).run(x)
        values = (raw.astype(np.float64) - zero) * scale
        step = scale + model.tensors[index].scale
        assert each.low == pytest.approx(max(values.min(), 4 * low), abs=step)
        if values.max() < 4 * high - step:
            assert each.high == pytest.approx(values.max(), abs=step)
        share = float(((values > high + step) | (values < low - step)).mean())
        most = float(((values > high - step) | (values < low + step)).mean())
        assert share <= each.clipped <= most or each.clipped == pytest.approx(share, abs=0.02)
        cut += each.clipped > 0.01
        compared += 1
    assert compared >= (4 if name == "untrained" else 8)
    # The other file fits what it was calibrated on.
    assert cut >= 2 if name == "untrained" else cut == 0


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [
        (tflite.ActivationFunctionType.NONE, -np.inf, np.inf),
        (tflite.ActivationFunctionType.RELU, 0.0, np.inf),
        (tflite.ActivationFunctionType.RELU6, 0.0, 6.0),
        (tflite.ActivationFunctionType.RELU_N1_TO_1, -1.0, 1.0),
    ],
)
@pytest.mark.parametrize("narrow", [0.02, 30.0])
def test_what_the_activation_takes_is_not_cut_off_by_int8(
    rng: np.random.Generator, activation: int, low: float, high: float, narrow: float
) -> None:
    network = layer(
        tflite.BuiltinOperator.CONV_2D,
        rng,
        input_shape=(1, 5, 5, 4),
        output_shape=(1, 5, 5, 6),
        weight_shape=(6, 1, 1, 4),
        options=convolution(padding=0, stride=(1, 1), dilation=(1, 1), activation=activation),
        terms=4,
        channel_axis=0,
    )
    source, output = network.inputs[0], network.outputs[0]
    network.tensors[output]["scales"] = np.array([narrow / 255], np.float32)
    network.tensors[output]["zeros"] = np.array([-3], np.int64)
    model = Model.parse(network.write())
    x = rng.integers(-128, 128, (20, 5, 5, 4)).astype(np.int8)
    (found,) = measured(model, x, "last").values()
    tensors = {index: model.tensors[index] for index in (source, *model.operators[0].inputs[1:])}
    weight, bias = model.operators[0].inputs[1:3]
    real = (x.astype(np.float64) - tensors[source].zero_point) * tensors[source].scale
    kernel = model.array(weight).reshape(6, 4) * tensors[weight].scales.astype(np.float64)[:, None]
    y = real @ kernel.T + model.array(bias) * tensors[bias].scales.astype(np.float64)
    step = model.tensors[output].scale
    allowed = np.clip(y, low, high)
    assert found.low == pytest.approx(allowed.min(), abs=step)
    assert found.high == pytest.approx(allowed.max(), abs=step)
    bottom, top = held(model.tensors[output])
    cut = ((allowed > top + step / 2) | (allowed < bottom - step / 2)).mean()
    assert found.clipped == pytest.approx(cut, abs=0.005)
    assert (found.clipped > 0) == (cut > 0)


def test_training_tells_the_ranges_of_what_it_made(digits: Model, digits_train: Dataset) -> None:
    few = digits_train.take(np.arange(200))
    first, again = (
        train(digits, numbers(digits, "dense"), few, PLAN, seed=3).ranges for _ in range(2)
    )
    assert repr(first) == repr(again)
    # What the frozen prefix makes is not there: nobody can change what it makes.
    dense = [op.outputs[0] for op in digits.operators if op.name == "FULLY_CONNECTED"]
    assert [each.index for each in first] == dense
    # They belong to the weights that are sent, not to those before.
    still = train(digits, numbers(digits, "dense"), few, replace(PLAN, learning_rate=1e-9), seed=3)
    assert still.ranges != first
    after = Model.parse(
        digits.patched(train(digits, numbers(digits, "dense"), few, PLAN, seed=3).values)
    )
    assert tuple(measured(after, few.inputs, "dense").values()) == first


def test_watching_ends_and_costs_nothing_else(digits: Model, digits_train: Dataset) -> None:
    tail = Tail(digits, numbers(digits, "all"))
    meter = RangeMeter(tail.layers)
    with pytest.raises(RuntimeError, match="stop"), meter:
        raise RuntimeError("stop")
    tail.forward((digits_train.inputs[:4],))
    assert meter.ranges() == ()
