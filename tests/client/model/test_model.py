# SPDX-License-Identifier: Apache-2.0
"""The reader and patcher, against what the real interpreter says of the same file."""

from __future__ import annotations

import tracemalloc

import flatbuffers
import numpy as np
import pytest
import tflite
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.dataset import Dataset
from fedlearn.errors import FedlearnError, ModelError, UnsupportedOperatorError
from fedlearn.evaluation import evaluate
from fedlearn.inspect import inspect_model
from fedlearn.model import Model
from fedlearn.runtime import Session, _interpreter_module
from fedlearn.trainer.tails import trainable_tensors
from fedlearn_demo.digits import MODEL_PATH
from tests.client.networks import Network, fully_connected, layer, softmax

_DIGITS = MODEL_PATH.read_bytes()


def test_tensor_table_equals_the_interpreters(digits: Model, digits_file: bytes) -> None:
    interpreter = _interpreter_module().Interpreter(model_content=digits_file)
    interpreter.allocate_tensors()
    details = {entry["index"]: entry for entry in interpreter.get_tensor_details()}
    for tensor in digits.tensors:
        entry = details[tensor.index]
        assert entry["name"] == tensor.name
        assert tuple(entry["shape"]) == tensor.shape
        assert np.dtype(entry["dtype"]) == tensor.dtype
        if len(tensor.scales):
            # ai-edge-litert shows one scale a channel also where the file has one for all.
            shown = entry["quantization_parameters"]
            assert (shown["scales"] == tensor.scales).all()
            assert (shown["zero_points"] == tensor.zero_points).all()
        if tensor.is_constant:
            values = interpreter.get_tensor(tensor.index)
            np.testing.assert_array_equal(values, digits.array(tensor.index))


def test_patched_weights_are_what_the_interpreter_computes_with(
    digits: Model, digits_test: Dataset
) -> None:
    """Zero weights and one large bias in the last layer: every answer must be that class."""
    *_, weight, bias = trainable_tensors(digits, "last")
    values = np.zeros(10, np.int32)
    values[7] = 100_000
    patched = digits.patched({weight.index: np.zeros(weight.shape, np.int8), bias.index: values})
    assert len(patched) == len(digits.data)
    outputs = Session(patched).run(digits_test.inputs[:50])
    assert (outputs.argmax(axis=1) == 7).all()
    assert Model.parse(patched).digest != digits.digest


def test_patch_of_another_shape_is_refused(digits: Model) -> None:
    weight = trainable_tensors(digits, "last")[0]
    with pytest.raises(ValueError, match=str(weight.index)):
        digits.patched({weight.index: np.zeros((3, 3), np.int8)})


def test_cut_gives_the_inner_tensor(digits: Model, digits_test: Dataset) -> None:
    """What follows the cut, run by hand on its output, gives the whole network's answer."""
    softmax_input = digits.operators[-1].inputs[0]
    logits = Session(digits.cut([softmax_input])).run(digits_test.inputs[:200])
    answers = Session(digits.data).run(digits_test.inputs[:200])
    assert logits.shape == answers.shape
    # Softmax keeps the order; ties in int8 answers are decided by the logits.
    best = answers[np.arange(200), logits.argmax(axis=1)]
    np.testing.assert_array_equal(best, answers.max(axis=1))


def test_tails_of_the_digits_model(digits: Model) -> None:
    shapes = {
        tail: [tensor.shape for tensor in trainable_tensors(digits, tail)]
        for tail in ("last", "dense", "all")
    }
    assert shapes["last"] == [(10, 64), (10,)]
    assert shapes["dense"] == [(64, 784), (64,), *shapes["last"]]
    assert shapes["all"] == [(8, 3, 3, 1), (8,), (16, 3, 3, 8), (16,), *shapes["dense"]]


def test_evaluation_of_the_starting_model(digits_file: bytes, digits_test: Dataset) -> None:
    """It has seen only the digits 0 to 4."""
    result = evaluate(digits_file, digits_test)
    assert 0.45 < result.known_accuracy < 0.5
    low = digits_test.labels < 5
    known = Dataset(digits_test.inputs[low], digits_test.labels[low])
    assert evaluate(digits_file, known).known_accuracy > 0.9


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no .tflite"),
        (b"\x00" * 64, "no .tflite"),
        (b"PK\x03\x04 this is a zip archive", "no .tflite"),
        (b"\x00\x00\x00\x00TFL3", "schema version"),
        (b"\xff\xff\xff\x7fTFL3" + b"\x00" * 16, "corrupt"),
    ],
)
def test_what_is_no_model_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        Model.parse(data)


def _float_network(weight_dtype: int) -> bytes:
    network = Network()
    source = network.tensor((1, 4), tflite.TensorType.FLOAT32)
    kind = np.int8 if weight_dtype == tflite.TensorType.INT8 else np.float32
    weight = network.tensor((2, 4), weight_dtype, scales=0.1, data=np.ones((2, 4), kind))
    output = network.tensor((1, 2), tflite.TensorType.FLOAT32)
    network.inputs, network.outputs = [source], [output]
    network.operator(
        tflite.BuiltinOperator.FULLY_CONNECTED,
        [source, weight, -1],
        [output],
        fully_connected(activation=0),
    )
    return network.write()


def test_float_and_dynamic_range_models_are_named() -> None:
    with pytest.raises(ModelError, match=r"is a float model.*convert it"):
        Model.parse(_float_network(tflite.TensorType.FLOAT32))
    with pytest.raises(ModelError, match=r"is a dynamic-range model.*convert it"):
        Model.parse(_float_network(tflite.TensorType.INT8))


def _dense(rng: np.random.Generator, **options: object) -> Network:
    return layer(
        tflite.BuiltinOperator.FULLY_CONNECTED,
        rng,
        input_shape=(1, 12),
        output_shape=(1, 6),
        weight_shape=(6, 12),
        options=fully_connected(activation=0),
        terms=12,
        channel_axis=0,
        per_channel=False,
        **options,  # type: ignore[arg-type]
    )


def test_an_operator_that_cannot_be_trained_is_named_with_the_tail_that_can(
    rng: np.random.Generator,
) -> None:
    network = _dense(rng)
    hidden = network.outputs[0]
    entry = network.tensors[hidden]
    squashed = network.tensor((1, 6), scales=1 / 128, zeros=0)
    network.operator(tflite.BuiltinOperator.TANH, [hidden], [squashed])
    layer(
        tflite.BuiltinOperator.FULLY_CONNECTED,
        rng,
        input_shape=(1, 6),
        output_shape=(1, 3),
        weight_shape=(3, 6),
        options=fully_connected(activation=0),
        terms=6,
        channel_axis=0,
        per_channel=False,
        network=network,
        source=squashed,
    )
    assert entry["shape"] == (1, 6)
    model = Model.parse(network.write())
    with pytest.raises(UnsupportedOperatorError, match=r"operator 1 \(TANH\).*'last'"):
        trainable_tensors(model, "all")
    assert [tensor.shape for tensor in trainable_tensors(model, "last")] == [(3, 6), (3,)]


def test_weights_that_two_operators_share_are_not_trained(rng: np.random.Generator) -> None:
    network = _dense(rng)
    source, weight, bias = network.operators[0]["inputs"]
    twin = {**network.tensors[weight]}
    network.tensors.append(twin)
    other = network.tensor((1, 6), scales=0.5)
    network.operator(
        tflite.BuiltinOperator.FULLY_CONNECTED,
        [source, len(network.tensors) - 2, bias],
        [other],
        fully_connected(activation=0),
    )
    network.outputs = [other]
    with pytest.raises(UnsupportedOperatorError, match="shared"):
        trainable_tensors(Model.parse(network.write()), "last")


def test_an_absent_bias_is_left_out(rng: np.random.Generator) -> None:
    model = Model.parse(_dense(rng, bias=False).write())
    assert [tensor.dtype for tensor in trainable_tensors(model, "all")] == ["int8"]


def test_a_network_without_weights_says_so() -> None:
    network = Network()
    source = network.tensor((1, 4), scales=0.1)
    output = network.tensor((1, 4), scales=1 / 256, zeros=-128)
    network.inputs, network.outputs = [source], [output]
    network.operator(tflite.BuiltinOperator.SOFTMAX, [source], [output], softmax())
    with pytest.raises(UnsupportedOperatorError, match="no layer with weights"):
        trainable_tensors(Model.parse(network.write()), "all")


@given(st.integers(0, len(_DIGITS) - 1))
def test_truncated_files_are_refused(end: int) -> None:
    """Each byte of this file belongs to something that is read, but for padding at its end."""
    with pytest.raises(FedlearnError):
        trainable_tensors(Model.parse(_DIGITS[:end]), "all")


def _unfolding(tensors: int, length: int, field: str) -> bytes:
    """A small file whose tensors all point to one vector of `length` elements."""
    builder = flatbuffers.Builder(1024)
    tflite.BufferStart(builder)
    buffers = _vector(builder, [tflite.BufferEnd(builder)])
    numbers = builder.CreateNumpyVector(
        np.ones(length, np.float32 if field == "scale" else np.int32)
    )
    name = builder.CreateString("x" * (length if field == "name" else 1))
    tflite.QuantizationParametersStart(builder)
    if field == "scale":
        tflite.QuantizationParametersAddScale(builder, numbers)
    quantisation = tflite.QuantizationParametersEnd(builder)
    tflite.TensorStart(builder)
    if field == "shape":
        tflite.TensorAddShape(builder, numbers)
    tflite.TensorAddName(builder, name)
    tflite.TensorAddQuantization(builder, quantisation)
    tensor_vector = _vector(builder, [tflite.TensorEnd(builder)] * tensors)
    none = _vector(builder, [])
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, tensor_vector)
    tflite.SubGraphAddOperators(builder, none)
    subgraphs = _vector(builder, [tflite.SubGraphEnd(builder)])
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddSubgraphs(builder, subgraphs)
    tflite.ModelAddBuffers(builder, buffers)
    tflite.ModelAddOperatorCodes(builder, none)
    builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _vector(builder: flatbuffers.Builder, items: list[int]) -> int:
    builder.StartVector(4, len(items), 4)
    for item in items:
        builder.PrependUOffsetTRelative(item)
    return int(builder.EndVector())


@pytest.mark.parametrize("field", ["shape", "scale", "name"])
def test_a_small_file_cannot_unfold_to_a_large_one(field: str) -> None:
    file = _unfolding(16_000, 16_000, field)
    assert len(file) < 200_000
    tracemalloc.start()
    with pytest.raises(ModelError):
        Model.parse(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 16,000 x 16,000 elements would be a gigabyte at the least.
    assert peak < 64e6


def _two_layers(rng: np.random.Generator, between: str) -> bytes:
    """Two dense layers with something between them or behind."""
    network = _dense(rng)
    hidden = network.outputs[0]
    source = hidden
    if between == "softmax":
        source = network.tensor((1, 6), scales=1 / 256, zeros=-128)
        network.operator(tflite.BuiltinOperator.SOFTMAX, [hidden], [source], softmax())
    elif between == "dead end":
        source = network.inputs[0]
    layer(
        tflite.BuiltinOperator.FULLY_CONNECTED,
        rng,
        input_shape=(1, 6),
        output_shape=(1, 3),
        weight_shape=(3, 12 if between == "dead end" else 6),
        options=fully_connected(activation={"tanh": 4}.get(between, 0)),
        terms=6,
        channel_axis=0,
        per_channel=False,
        network=network,
        source=source,
    )
    return network.write()


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        ("tanh", "TANH"),
    ],
)
def test_tails_that_cannot_be_trained_are_refused_before_a_device_tries(
    rng: np.random.Generator, between: str, reason: str
) -> None:
    model = Model.parse(_two_layers(rng, between))
    refusal = inspect_model(model).refusal
    assert refusal is not None
    assert reason in refusal


def test_a_layer_that_leads_nowhere_is_not_trained(rng: np.random.Generator) -> None:
    model = Model.parse(_two_layers(rng, "dead end"))
    tensors = trainable_tensors(model, "all")
    assert [tensor.shape for tensor in tensors] == [(3, 12), (3,)]


def test_two_plain_layers_are_accepted(rng: np.random.Generator) -> None:
    """Control of the test above."""
    model = Model.parse(_two_layers(rng, "nothing"))
    assert inspect_model(model).refusal is None


def test_two_inputs_are_refused() -> None:
    network = Network()
    numbers = [network.tensor((1, 4), scales=0.1) for _ in range(3)]
    network.operator(tflite.BuiltinOperator.ADD, numbers[:2], numbers[2:])
    network.inputs, network.outputs = numbers[:2], numbers[2:]
    with pytest.raises(ModelError, match="2 inputs"):
        Model.parse(network.write())
