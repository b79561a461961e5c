# SPDX-License-Identifier: Apache-2.0
"""The models are what `README.md` says, and their data are the same everywhere."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite
from numpy.typing import NDArray

from fedlearn.runtime import Session, _interpreter_module
from fedlearn_demo.digits import MODEL_PATH
from tests import models
from tests.models.vibration import MACHINES, STEP_G, windows

INT8 = [
    models.MOBILENET_PATH,
    models.UNTRAINED_PATH,
    models.KEYWORDS_PATH,
    models.AUTOENCODER_PATH,
    models.MULTILABEL_PATH,
]
EVERY = [*INT8, models.FLOAT_EDGES_PATH]
NAMES = {
    number: name for name, number in vars(tflite.BuiltinOperator).items() if isinstance(number, int)
}


def graph(path: Path) -> tuple[Any, Any]:
    """A file's model and subgraph, read by the schema's own generated code."""
    model = tflite.Model.GetRootAs(path.read_bytes(), 0)
    assert model.SubgraphsLength() == 1
    return model, model.Subgraphs(0)


def operators(path: Path) -> list[str]:
    """The operators' names, in order."""
    model, subgraph = graph(path)
    numbers = [subgraph.Operators(n).OpcodeIndex() for n in range(subgraph.OperatorsLength())]
    codes = [model.OperatorCodes(number) for number in numbers]
    # A number past 127 is in the newer field; old ones may be in the older field alone.
    return [NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes]


def edges(path: Path) -> list[tuple[float, int]]:
    """Scale and zero point of the input and of the output."""
    _, subgraph = graph(path)
    tensors = [subgraph.Tensors(number) for number in (subgraph.Inputs(0), subgraph.Outputs(0))]
    assert [tensor.Type() for tensor in tensors] == [tflite.TensorType.INT8] * 2
    found = [tensor.Quantization() for tensor in tensors]
    return [(float(entry.Scale(0)), int(entry.ZeroPoint(0))) for entry in found]


def answers(path: Path, x: NDArray[Any]) -> NDArray[np.float64]:
    """What an int8 model says to samples, all in real units."""
    (scale, zero), (scale_out, zero_out) = edges(path)
    real = x / 255 if x.dtype == np.uint8 else x
    quantised = np.rint(real / scale + zero).clip(-128, 127).astype(np.int8)
    return (Session(path.read_bytes()).run(quantised).astype(np.float64) - zero_out) * scale_out


def accuracy(path: Path, x: NDArray[np.uint8], y: NDArray[np.uint8]) -> float:
    return float((answers(path, x).argmax(axis=1) == y).mean())


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (
            models.MOBILENET_PATH,
            {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED", "SOFTMAX"},
        ),
        (models.UNTRAINED_PATH, {"CONV_2D", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX"}),
        (
            models.KEYWORDS_PATH,
            {"CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "FULLY_CONNECTED", "SOFTMAX"},
        ),
        (models.AUTOENCODER_PATH, {"FULLY_CONNECTED"}),
        (
            models.MULTILABEL_PATH,
            {
                *("PAD", "CONV_2D", "CONCATENATION", "RELU6", "MAX_POOL_2D", "MEAN"),
                *("LOGISTIC", "MUL", "RESHAPE", "FULLY_CONNECTED"),
            },
        ),
        (
            models.FLOAT_EDGES_PATH,
            {"QUANTIZE", "CONV_2D", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX", "DEQUANTIZE"},
        ),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else None,
)
def test_it_has_the_operators_that_it_is_there_for(path: Path, wanted: set[str]) -> None:
    assert set(operators(path)) == wanted


def test_where_the_operators_stand() -> None:
    assert operators(models.MOBILENET_PATH).count("ADD") == 3
    assert operators(models.AUTOENCODER_PATH) == ["FULLY_CONNECTED"] * 4
    assert operators(models.MULTILABEL_PATH)[-1] == "LOGISTIC"
    inner = operators(models.FLOAT_EDGES_PATH)[1:-1]
    assert inner == operators(models.UNTRAINED_PATH) == operators(MODEL_PATH)
    assert operators(models.FLOAT_EDGES_PATH)[::7] == ["QUANTIZE", "DEQUANTIZE"]


def test_the_untrained_models_dense_layers_have_no_bias() -> None:
    """The converter leaves out a bias of zeros there, which only an untrained net has."""
    _, subgraph = graph(models.UNTRAINED_PATH)
    for number, name in enumerate(operators(models.UNTRAINED_PATH)):
        if name == "FULLY_CONNECTED":
            assert subgraph.Operators(number).InputsAsNumpy()[2] == -1


def test_the_files_are_small() -> None:
    assert sorted(Path(models.__file__).parent.glob("*.tflite")) == sorted(EVERY)
    sizes = [path.stat().st_size for path in EVERY]
    assert max(sizes) < 150_000
    assert sum(sizes) < 500_000


def test_half_of_the_digits_are_new_to_the_mobilenet() -> None:
    x, y = models.load_test()
    assert 0.45 < accuracy(models.MOBILENET_PATH, x, y) <= 0.5


def test_the_untrained_model_guesses() -> None:
    assert accuracy(models.UNTRAINED_PATH, *models.load_test()) < 0.2


def test_half_of_the_keywords_are_new_to_the_model() -> None:
    x, y = models.load_keywords_test()
    assert 0.45 < accuracy(models.KEYWORDS_PATH, x, y) <= 0.5


def test_the_labels_are_known_a_little() -> None:
    x, y = models.load_test()
    hits = (answers(models.MULTILABEL_PATH, x) > 0.5) == models.label_digits(y)
    assert hits.shape == (1000, len(models.LABELS))
    assert ((hits.mean(axis=0) > 0.8) & (hits.mean(axis=0) < 0.9)).all()


def test_the_autoencoder_has_much_to_learn() -> None:
    x = models.load_vibration_test()
    assert edges(models.AUTOENCODER_PATH) == [(STEP_G, 0)] * 2
    assert 0.2 < np.square(answers(models.AUTOENCODER_PATH, x) - x).mean() < 0.35


def test_float_edges_take_and_give_real_numbers() -> None:
    interpreter = _interpreter_module().Interpreter(
        model_content=models.FLOAT_EDGES_PATH.read_bytes()
    )
    interpreter.allocate_tensors()
    (entry,), (exit_,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert entry["dtype"] == exit_["dtype"] == np.float32
    x, y = models.load_test()
    hits = 0
    for sample, label in zip(x, y, strict=True):
        interpreter.set_tensor(entry["index"], sample[np.newaxis] / np.float32(255))
        interpreter.invoke()
        hits += int(interpreter.get_tensor(exit_["index"]).argmax() == label)
    assert 450 < hits <= 500


def digest(*arrays: NDArray[Any]) -> str:
    joined = hashlib.sha256()
    for array in arrays:
        joined.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return joined.hexdigest()


def test_keywords_are_the_same_everywhere() -> None:
    train, test = models.load_keywords_train(), models.load_keywords_test()
    assert [array.shape for array in train] == [(2000, 49, 10, 1), (2000,)]
    assert [array.shape for array in test] == [(800, 49, 10, 1), (800,)]
    assert {array.dtype for array in (*train, *test)} == {np.dtype(np.uint8)}
    assert digest(*train, *test) == (
        "e00ec1ffccdf7163ec701c758b39b151d0b10e604f5034d0553f82949711d43a"
    )


def test_there_are_as_many_of_each_keyword() -> None:
    for count, (_, y) in ((250, models.load_keywords_train()), (100, models.load_keywords_test())):
        np.testing.assert_array_equal(np.bincount(y), [count] * 8)


def test_vibration_is_the_same_everywhere() -> None:
    arrays = [
        load(machine)
        for machine in range(len(MACHINES))
        for load in (models.load_vibration_train, models.load_vibration_test)
    ]
    faults = [models.load_vibration_fault(fault) for fault in models.FAULTS]
    assert {array.shape for array in faults} == {(500, 64)}
    # Float32 that are whole numbers of steps: nothing of a last bit is left in them.
    whole = np.concatenate([*arrays, *faults]) / np.float32(STEP_G)
    np.testing.assert_array_equal(whole, np.rint(whole))
    assert np.abs(whole).max() <= 127
    assert digest(*arrays, *faults) == (
        "b2ee115b437db1adc889faf6c70c51b0e303c57d914e72ff54cfedf0b0bf3f50"
    )


def test_no_two_kinds_of_windows_are_the_same() -> None:
    kinds = [windows(0, 50, 1, fault) for fault in (None, *models.FAULTS)]
    kinds += [windows(machine, 50, 1) for machine in (1, 2)]
    assert len({digest(kind) for kind in kinds}) == len(kinds)
    with pytest.raises(ValueError, match="gremlins"):
        windows(0, 1, 1, "gremlins")


def test_digits_are_labelled_by_what_is_true_of_them() -> None:
    labels = models.label_digits(np.arange(10, dtype=np.uint8))
    assert labels.dtype == np.uint8
    even, large, loop, third = labels.T.astype(bool)
    np.testing.assert_array_equal(even, np.arange(10) % 2 == 0)
    np.testing.assert_array_equal(large, np.arange(10) > 4)
    np.testing.assert_array_equal(third, np.arange(10) % 3 == 0)
    np.testing.assert_array_equal(np.flatnonzero(loop), [0, 6, 8, 9])
