# SPDX-License-Identifier: Apache-2.0
"""The frozen part: the same bits on every machine where the trainer knows its operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.cli import main
from fedlearn.dataset import Dataset
from fedlearn.model import Model
from fedlearn.runtime import Session
from fedlearn.trainer.operators import LAYERS
from fedlearn.trainer.prefix import Prefix
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import trainable_tensors
from fedlearn_demo.digits import MODEL_PATH, load_train

FEW = 300


def entries(model: Model, tail: str) -> tuple[int, ...]:
    return Tail(model, [each.index for each in trainable_tensors(model, tail)]).entries


def made(model: Model, inputs: Any, batch: int = 64) -> Any:
    """Features of the cut before the dense layers, and why they are the runtime's, if they are."""
    prefix = Prefix(model, entries(model, "dense"), inputs, batch=batch)
    return prefix.features(inputs)[0], prefix.unpinned


def interpreted(model: Model, inputs: Any) -> Any:
    return Session(model.cut(entries(model, "dense"))).run(inputs)


def test_the_features_are_the_shared_rounding_of_all_layers(
    digits: Model, digits_train: Dataset
) -> None:
    """As a tail that is the whole network makes them; the layers have oracles of their own."""
    inputs = digits_train.inputs[:FEW]
    features, unpinned = made(digits, inputs)
    assert not unpinned
    whole = Tail(digits, [each.index for each in trainable_tensors(digits, "all")])
    whole.pin()
    values = whole.centred((inputs,))
    for at, layer in enumerate(whole.layers):
        values[layer.output.index] = layer.forward(*whole.inputs_of(at, values))
        if layer.output.index == entries(digits, "dense")[0]:
            expected = values[layer.output.index] + layer.output.zero_point
    np.testing.assert_array_equal(features, expected)
    # The interpreter's differ, by one step in some of a thousand outputs.
    difference = np.abs(features.astype(int) - interpreted(digits, inputs))
    assert difference.max() == 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_blocks_of_any_size_make_the_same(digits: Model, digits_train: Dataset, batch: int) -> None:
    inputs = digits_train.inputs[:50]
    np.testing.assert_array_equal(made(digits, inputs, batch)[0], made(digits, inputs)[0])


def test_nothing_lies_before_the_whole_network(digits: Model, digits_train: Dataset) -> None:
    inputs = digits_train.inputs[:9]
    prefix = Prefix(digits, entries(digits, "all"), inputs, batch=8)
    assert not prefix.unpinned
    assert prefix.features(inputs)[0] is inputs


def test_the_interpreter_runs_what_the_trainer_does_not_know(
    digits: Model, digits_train: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(LAYERS, "CONV_2D")
    inputs = digits_train.inputs[:FEW]
    features, unpinned = made(digits, inputs)
    assert "operator 0 (CONV_2D) cannot be trained" in unpinned
    np.testing.assert_array_equal(features, interpreted(digits, inputs))


def test_the_interpreter_runs_what_the_trainer_cannot_reproduce(
    digits: Model, digits_train: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Session.run_all
    monkeypatch.setattr(
        Session, "run_all", lambda self, x: tuple(np.clip(y, -127, 126) for y in real(self, x))
    )
    inputs = digits_train.inputs[:FEW]
    features, unpinned = made(digits, inputs)
    assert "that this trainer does not reproduce" in unpinned
    np.testing.assert_array_equal(features, interpreted(digits, inputs))


def test_the_command_says_whose_bits_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = load_train()
    np.savez(tmp_path / "data.npz", x=x[:50], y=y[:50])
    command = ["model", "train", str(MODEL_PATH), str(tmp_path / "data.npz")]
    command += ["--out", str(tmp_path / "new.tflite"), "--tail", "dense", "--epochs", "1"]
    assert main(command) == 0
    assert "another machine" not in capsys.readouterr().out
    monkeypatch.delitem(LAYERS, "CONV_2D")
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "another machine may train other bits: the interpreter runs the frozen part" in told
