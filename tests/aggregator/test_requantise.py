# SPDX-License-Identifier: Apache-2.0
"""Master weights to `.tflite` and back."""

import dataclasses

import numpy as np
import pytest

from fedlearn.errors import ModelError
from fedlearn.model import Model
from fedlearn.trainer.tails import trainable_tensors
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
        tensor = model.tensors[index]
        assert scale.shape == tensor.shape
        by_channel = np.moveaxis(scale, tensor.axis, 0).reshape(tensor.shape[tensor.axis], -1)
        assert (by_channel == tensor.scales.astype(np.float64)[:, None]).all()


def test_a_bias_without_a_scale_is_refused_for_fedadam() -> None:
    model = start_model()
    tensors = trainable_tensors(model, "last")
    bare = [dataclasses.replace(each, scales=np.zeros(0, np.float32)) for each in model.tensors]
    with pytest.raises(ModelError, match="scale"):
        requantise.grid_scales(dataclasses.replace(model, tensors=tuple(bare)), tensors)
