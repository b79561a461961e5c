# SPDX-License-Identifier: Apache-2.0
"""`fedlearn model ...` as a person uses it, on models of the kinds that people deploy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedlearn.cli import main
from fedlearn.model import Model
from fedlearn_demo.digits import MODEL_PATH, load_train
from tests import models
from tests.client.model import samples
from tests.client.networks import add_float_edges

FILES = [
    MODEL_PATH,
    models.MOBILENET_PATH,
    models.UNTRAINED_PATH,
    models.KEYWORDS_PATH,
    models.MULTILABEL_PATH,
    models.FLOAT_EDGES_PATH,
    models.AUTOENCODER_PATH,
]


def _inputs(path: Path, tmp_path: Path) -> str:
    model = Model.parse(path.read_bytes())
    shape = model.tensors[model.entry].shape[1:]
    x = np.random.default_rng(0).integers(-128, 128, (20, *shape)).astype(np.int8)
    np.savez(tmp_path / "x.npz", x=x)
    return str(tmp_path / "x.npz")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_model_is_inspected_with_data(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "inspect", str(path), "--data", _inputs(path, tmp_path)]) == 0
    assert "Saturation on the data" in capsys.readouterr().out


@pytest.mark.parametrize(("at_input", "at_output"), [(True, False), (False, True), (True, True)])
def test_float_edges_are_no_activations(
    at_input: bool, at_output: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = samples.separable()
    plain, path = tmp_path / "plain.tflite", tmp_path / "edged.tflite"
    plain.write_bytes(network.write())
    add_float_edges(network, at_input=at_input, at_output=at_output)
    path.write_bytes(network.write())
    data, found = _inputs(plain, tmp_path), []
    for each in (plain, path):
        assert main(["model", "inspect", str(each), "--data", data, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)["saturation"]
        found.append([{**entry, "operator": 0} for entry in report])
    assert found[0] == found[1]


def test_what_is_no_autoencoder_has_no_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", x=load_train()[0][:5])
    assert main(["model", "score", str(MODEL_PATH), str(tmp_path / "x.npz")]) == 65
    assert "digits.tflite is no autoencoder: it takes 784 values and gives 10 (" in (
        capsys.readouterr().err
    )


def test_class_weights_of_the_wrong_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = load_train()
    np.savez(tmp_path / "x.npz", x=x[:50], y=y[:50])
    train = ["model", "train", str(MODEL_PATH), str(tmp_path / "x.npz"), "--class-weights", "1,2,3"]
    assert main([*train, "--out", str(tmp_path / "out.tflite")]) == 78
    assert "3 class weights, the model has 10 classes (" in capsys.readouterr().err
    assert not (tmp_path / "out.tflite").exists()
