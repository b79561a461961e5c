# SPDX-License-Identifier: Apache-2.0
"""Float32 edges of an int8 file, against the runtime on the whole file, floats in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tflite

from fedlearn.dataset import Dataset
from fedlearn.errors import ModelError
from fedlearn.evaluation import evaluate
from fedlearn.inspect import inspect_model
from fedlearn.model import Model
from fedlearn.runtime import Session, _interpreter_module
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.training import train
from fedlearn.wire.messages import TrainingPlan
from tests.client.networks import (
    Network,
    add_float_edges,
    convolution,
    fully_connected,
    layer,
    softmax,
)

FLOAT32 = tflite.TensorType.FLOAT32


def _network() -> Network:
    """CONV_2D, RESHAPE, FULLY_CONNECTED, SOFTMAX; the same weights each time."""
    rng = np.random.default_rng(7)
    network = layer(
        tflite.BuiltinOperator.CONV_2D,
        rng,
        input_shape=(1, 6, 6, 1),
        output_shape=(1, 6, 6, 4),
        weight_shape=(4, 3, 3, 1),
        options=convolution(padding=0, stride=(1, 1), dilation=(1, 1), activation=1),
        terms=9,
        channel_axis=0,
    )
    (hidden,) = network.outputs
    entry = network.tensors[hidden]
    flat = network.tensor((1, 144), scales=entry["scales"], zeros=entry["zeros"])
    shape = network.tensor((2,), tflite.TensorType.INT32, data=np.array([1, 144], np.int32))
    network.operator(tflite.BuiltinOperator.RESHAPE, [hidden, shape], [flat])
    layer(
        tflite.BuiltinOperator.FULLY_CONNECTED,
        rng,
        input_shape=(1, 144),
        output_shape=(1, 5),
        weight_shape=(5, 144),
        options=fully_connected(activation=0),
        terms=144,
        channel_axis=0,
        per_channel=False,
        network=network,
        source=flat,
    )
    answer = network.tensor((1, 5), scales=1 / 256, zeros=-128)
    network.operator(tflite.BuiltinOperator.SOFTMAX, network.outputs, [answer], softmax())
    network.outputs = [answer]
    return network


def _edged(*, at_input: bool = True, at_output: bool = True) -> Model:
    network = _network()
    add_float_edges(network, at_input=at_input, at_output=at_output)
    return Model.parse(network.write())


def _run_floats(file: bytes, samples: Any) -> Any:
    """What an application gets: the whole file, values in real units."""
    interpreter = _interpreter_module().Interpreter(model_content=file)
    interpreter.allocate_tensors()
    (entry,), (exit_,) = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for sample in samples:
        interpreter.set_tensor(entry["index"], sample[None].astype(entry["dtype"]))
        interpreter.invoke()
        results.append(interpreter.get_tensor(exit_["index"])[0])
    return np.stack(results)


@pytest.fixture
def samples() -> Any:
    return np.random.default_rng(3).integers(-128, 128, (60, 6, 6, 1)).astype(np.int8)


EDGES = pytest.mark.parametrize(
    ("at_input", "at_output"), [(True, True), (True, False), (False, True), (False, False)]
)


@EDGES
def test_edges_are_the_int8_tensors(at_input: bool, at_output: bool) -> None:
    plain, model = Model.parse(_network().write()), _edged(at_input=at_input, at_output=at_output)
    assert (model.entry, model.exit) == (plain.inputs[0], plain.outputs[0])
    assert model.operators[model.exit_operator].name == "SOFTMAX"
    assert (model.inputs[0] != model.entry) == at_input
    assert (model.outputs[0] != model.exit) == at_output
    tensors = [trainable_tensors(each, "all") for each in (plain, model)]
    assert tensors[0] == tensors[1]


@EDGES
def test_cuts_take_int8_and_compute_the_same(at_input: bool, at_output: bool, samples: Any) -> None:
    """The oracle is the network without edges, cut at the same tensors."""
    plain, model = Model.parse(_network().write()), _edged(at_input=at_input, at_output=at_output)
    for operator in plain.operators:
        for outputs in (list(operator.outputs), [plain.exit, *operator.outputs]):
            got = Session(model.cut(outputs)).run_all(samples)
            expected = Session(plain.cut(outputs)).run_all(samples)
            for each, other in zip(got, expected, strict=True):
                np.testing.assert_array_equal(each, other)


def test_a_cut_has_no_quantize_and_parses(samples: Any) -> None:
    model = _edged()
    for operator in model.operators[1:-1]:
        shorter = Model.parse(model.cut(operator.outputs))
        names = [each.name for each in shorter.operators]
        assert names == [each.name for each in model.operators[1 : operator.index + 1]]
        for ours, theirs in zip(shorter.operators, model.operators[1:], strict=False):
            assert (ours.inputs, ours.outputs) == (theirs.inputs, theirs.outputs)
        assert shorter.inputs == (model.entry,)


def test_the_entry_itself_is_no_cut() -> None:
    model = _edged()
    with pytest.raises(ValueError, match="no operator"):
        model.cut([model.entry])


@EDGES
def test_evaluation_is_what_an_application_sees(
    at_input: bool, at_output: bool, samples: Any
) -> None:
    """Floats through the whole file: the same answers, and labels made of them are all right."""
    model = _edged(at_input=at_input, at_output=at_output)
    tensor = model.tensors[model.entry]
    real = (samples.astype(np.float32) - tensor.zero_point) * np.float32(tensor.scale)
    answers = _run_floats(model.data, real if at_input else samples)
    labels = answers.reshape(len(samples), -1).argmax(axis=1)
    data = Dataset.from_arrays(real, labels, model)
    np.testing.assert_array_equal(data.inputs, samples)
    assert evaluate(model.data, data).accuracy == 1.0
    assert evaluate(model.data, data) == evaluate(_network().write(), data)
    wrong = Dataset(data.inputs, (labels + 1) % 5)  # control
    assert evaluate(model.data, wrong).accuracy == 0.0


def test_training_is_the_same_and_keeps_the_edges(samples: Any) -> None:
    plain, model = Model.parse(_network().write()), _edged()
    labels = np.random.default_rng(4).integers(0, 5, len(samples))
    plan = TrainingPlan("softmax_cross_entropy", 2, 16, 0.05)
    tensors = [tensor.index for tensor in trainable_tensors(model, "all")]
    trained = [
        train(each, tensors, Dataset(samples, labels), plan, seed=1) for each in (plain, model)
    ]
    for index in tensors:
        np.testing.assert_array_equal(trained[0].values[index], trained[1].values[index])
    patched = Model.parse(model.patched(trained[1].values))
    assert patched.data != model.data
    names = [operator.name for operator in patched.operators]
    assert (names[0], names[-1]) == ("QUANTIZE", "DEQUANTIZE")


def test_inspection_shows_the_files_own_edges() -> None:
    text = inspect_model(_edged(at_output=False)).to_text()
    assert "float32 input 1x6x6x1, int8 output 1x5" in text


def _shared_input() -> Network:
    """A second operator that reads the float input."""
    network = _network()
    add_float_edges(network)
    other = network.tensor((1, 6, 6, 1), scales=0.1)
    network.operator(tflite.BuiltinOperator.QUANTIZE, network.inputs, [other])
    return network


def _float_softmax() -> Network:
    """DEQUANTIZE before the SOFTMAX."""
    network = _network()
    answer = network.operators.pop()
    network.outputs = answer["inputs"]
    add_float_edges(network)
    output = network.tensor((1, 5), FLOAT32)
    network.operator(tflite.BuiltinOperator.SOFTMAX, network.outputs, [output], softmax())
    network.outputs = [output]
    return network


def _reshaped_input() -> Network:
    """A RESHAPE of floats before the QUANTIZE."""
    network = _network()
    add_float_edges(network)
    outer = network.tensor((1, 36), FLOAT32)
    shape = network.tensor((4,), tflite.TensorType.INT32, data=np.array([1, 6, 6, 1], np.int32))
    network.operator(tflite.BuiltinOperator.RESHAPE, [outer, shape], network.inputs)
    network.operators.insert(0, network.operators.pop())
    network.inputs = [outer]
    return network


def _unquantised_entry() -> Network:
    """A QUANTIZE to int8 without a scale."""
    network = _network()
    network.tensors[network.inputs[0]]["scales"] = np.zeros(0, np.float32)
    add_float_edges(network)
    return network


def _cast_output() -> Network:
    """Float32 that comes from no DEQUANTIZE."""
    network = _network()
    output = network.tensor((1, 5), FLOAT32)
    network.operator(tflite.BuiltinOperator.CAST, network.outputs, [output])
    network.outputs = [output]
    return network


@pytest.mark.parametrize(
    "make", [_shared_input, _float_softmax, _reshaped_input, _unquantised_entry, _cast_output]
)
def test_other_float_edges_are_refused(make: Any) -> None:
    with pytest.raises(ModelError, match=r"not quantised int8 \(convert it with full integer"):
        Model.parse(make().write())


def test_a_file_that_computes_nothing_in_int8_is_refused() -> None:
    network = Network()
    inner = network.tensor((1, 4), scales=0.1)
    network.inputs = network.outputs = [inner]
    add_float_edges(network)
    with pytest.raises(ModelError, match="one operator makes the output"):
        Model.parse(network.write())
