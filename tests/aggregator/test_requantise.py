# SPDX-License-Identifier: Apache-2.0
"""Master weights to `.tflite` and back."""

import numpy as np

from fedlearn.model import Model, trainable_tensors
from fedlearn_aggregator import requantise
from fedlearn_aggregator.optimizers import ServerState
from tests.aggregator.devices import start_model


def test_the_first_state_gives_the_starting_model() -> None:
    model = start_model()
    tensors = trainable_tensors(model, "all")
    state = requantise.first_state(model, tensors)
    assert requantise.next_model(model, tensors, state) == model.data


def test_only_trained_tensors_change_and_they_round_half_to_even_within_127() -> None:
    model = start_model()
    tensors = trainable_tensors(model, "last")
    weight = next(tensor for tensor in tensors if tensor.dtype == "int8")
    state = requantise.first_state(model, tensors)
    master = state.master[weight.index].copy()
    master.flat[:6] = [0.5, 1.5, -0.5, 127.49, -127.49, -128.0]
    state = ServerState({**state.master, weight.index: master})
    changed = Model.parse(requantise.next_model(model, tensors, state))
    assert changed.array(weight.index).flat[:6].tolist() == [0, 2, 0, 127, -127, -127]
    for tensor in trainable_tensors(model, "all"):
        if tensor.index != weight.index:
            np.testing.assert_array_equal(model.array(tensor.index), changed.array(tensor.index))


def test_scales_broadcast_along_the_channels() -> None:
    model = start_model()
    tensors = trainable_tensors(model, "all")
    for index, scale in requantise.grid_scales(model, tensors).items():
        array = model.array(index)
        assert np.broadcast_shapes(scale.shape, array.shape) == array.shape
        assert scale.size in (1, array.shape[model.tensors[index].axis])
