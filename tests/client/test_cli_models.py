# SPDX-License-Identifier: Apache-2.0
"""`fedlearn model ...` as a person uses it, on models of the kinds that people deploy."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedlearn.cli import main
from fedlearn.model import Model
from fedlearn_demo.digits import MODEL_PATH, load_train
from tests import models
from tests.client.model import samples
from tests.client.networks import add_float_edges
from tests.models import vibration

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


def _digits(tmp_path: Path, count: int = 200) -> str:
    x, y = load_train()
    np.savez(tmp_path / "digits.npz", x=x[:count], y=y[:count])
    return str(tmp_path / "digits.npz")


def _train(data: str, out: Path, *options: str) -> list[str]:
    return ["model", "train", str(MODEL_PATH), data, "--out", str(out), "--json", *options]


def test_a_training_tells_what_it_measured_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = _digits(tmp_path), tmp_path / "out.tflite"
    found = {}
    for options in ((), ("--validation", "0.2"), ("--validation", "0.2", "--test", data)):
        assert main(_train(data, out, *options)) == 0
        result = json.loads(capsys.readouterr().out)
        found[result["measured_on"]] = result["after"]["samples"]
        assert result["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
        assert result["seed"] == 0
    assert found == {"the training data": 200, "the held-out samples": 40, "the test data": 200}


def test_the_best_epoch_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At this rate the held-out loss is best early; what is kept is that epoch's, bit for bit."""
    data, out = _digits(tmp_path), tmp_path / "out.tflite"
    held = ("--validation", "0.2", "--learning-rate", "0.5", "--fixed-scales")
    assert main(_train(data, out, *held, "--epochs", "12", "--patience", "3")) == 0
    result = json.loads(capsys.readouterr().out)
    best = result["best_epoch"]
    assert result["stopped_early"]
    assert result["epochs"] == best + 3
    again = tmp_path / "again.tflite"
    assert main(_train(data, again, *held, "--epochs", str(best))) == 0
    assert again.read_bytes() == out.read_bytes()


def test_the_result_never_replaces_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _digits(tmp_path)
    before = Path(data).read_bytes()
    (tmp_path / "link.npz").symlink_to(data)
    for out in (Path(data), tmp_path / "link.npz"):
        assert main(_train(data, out)) == 78
        assert "would replace the data" in capsys.readouterr().err
    assert Path(data).read_bytes() == before


def test_a_threshold_comes_from_samples_that_were_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", x=vibration.windows(0, 1200, 1))
    data, out = str(tmp_path / "x.npz"), tmp_path / "out.tflite"
    train = ["model", "train", str(models.AUTOENCODER_PATH), data, "--out", str(out), "--json"]
    train += ["--loss", "mean_squared_error"]
    assert main(train) == 0
    assert json.loads(capsys.readouterr().out)["anomaly_threshold"] is None
    assert main([*train, "--validation", "0.25"]) == 0
    threshold = json.loads(capsys.readouterr().out)["anomaly_threshold"]
    score = ["model", "score", str(out), data, "--json", "--threshold", str(threshold)]
    assert main(score) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["threshold"] == threshold
    assert 0 < len(scored["anomalies"]) < 24
    assert [number for number, each in enumerate(scored["scores"]) if each > threshold] == (
        scored["anomalies"]
    )


def test_a_full_disk_under_the_output_is_told() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fedlearn", "model", "inspect", str(MODEL_PATH)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 74
    assert done.stderr == "fedlearn: error: cannot write the output: No space left on device\n"
