# SPDX-License-Identifier: Apache-2.0
"""A file calibrated on an untrained net, trained on one machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedlearn.model import Model
from fedlearn.trainer import rehearsal
from fedlearn.trainer.local import LocalResult, train_file
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.wire.messages import ActivationRange, TrainingPlan
from fedlearn_demo.digits import MODEL_PATH, load_test, load_train
from tests.models import UNTRAINED_PATH

PLAN = TrainingPlan("softmax_cross_entropy", epochs=3, batch_size=16, learning_rate=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits")
    for name, (x, y) in (("train", load_train()), ("test", load_test())):
        np.savez(path / f"{name}.npz", x=x, y=y)
    return path


def run(folder: Path, model: Path, *, fixed_scales: bool = False) -> LocalResult:
    return train_file(
        model,
        folder / "train.npz",
        folder / "out.tflite",
        PLAN,
        seed=5,
        test_path=folder / "test.npz",
        fixed_scales=fixed_scales,
    )


def test_an_untrained_file_learns(folder: Path) -> None:
    result = run(folder, UNTRAINED_PATH)
    assert result.before.accuracy is not None
    assert result.after.accuracy is not None
    assert result.before.accuracy < 0.2
    assert result.after.accuracy > 0.92
    assert result.rescaled > 8
    first = (folder / "out.tflite").read_bytes()
    assert len(first) == UNTRAINED_PATH.stat().st_size
    run(folder, UNTRAINED_PATH)
    assert (folder / "out.tflite").read_bytes() == first
    # The control: with the scales of the file it cannot.
    result = run(folder, UNTRAINED_PATH, fixed_scales=True)
    assert result.rescaled == 0
    assert result.after.accuracy is not None
    assert result.after.accuracy < 0.75


def test_a_file_that_fits_is_trained_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Model:
        raise AssertionError("rehearsed")

    monkeypatch.setattr("fedlearn.trainer.local.rehearsed", refuse)
    result = run(folder, MODEL_PATH)
    assert result.after.accuracy is not None
    assert result.after.accuracy > 0.9


def test_clipped_logits_alone_are_no_reason() -> None:
    much = ActivationRange(1, 0.0, 1.0, 0.5)
    little = ActivationRange(0, 0.0, 1.0, 0.01)
    assert not rehearsal.is_cut_off([little, much], 1)
    assert rehearsal.is_cut_off([little, much], 0)
    assert rehearsal.is_cut_off([little, much], None)
    assert not rehearsal.is_cut_off([], None)


def test_only_a_head_that_hands_over_accumulators_makes_logits(digits: Model) -> None:
    numbers = [tensor.index for tensor in trainable_tensors(digits, "dense")]
    *_, dense, last, softmax = digits.operators
    assert Tail(digits, numbers).logits == last.outputs[0]
    # The SOFTMAX's int8 output is judged as it is.
    assert Tail(digits, numbers, absorbed=None).logits is None
    assert {dense.name, softmax.name} == {"FULLY_CONNECTED", "SOFTMAX"}
