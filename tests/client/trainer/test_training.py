# SPDX-License-Identifier: Apache-2.0
"""Training as a whole: the gradient's direction, learning, and the same bits every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedlearn.dataset import Dataset
from fedlearn.durable import write_durably
from fedlearn.errors import (
    DatasetError,
    MissingFileError,
    StorageError,
    TrainerError,
    UnsupportedOperatorError,
)
from fedlearn.evaluation import evaluate
from fedlearn.model import Model
from fedlearn.trainer import weighted
from fedlearn.trainer.local import train_file
from fedlearn.trainer.loss import SoftmaxCrossEntropy
from fedlearn.trainer.order import device_seed, philox, sample_order
from fedlearn.trainer.requantisation import Arithmetic
from fedlearn.trainer.selftest import match
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.training import Training, train
from fedlearn.trainer.weighted import WeightedLayer
from fedlearn.wire.messages import TrainingPlan
from tests.models import KEYWORDS_PATH

PLAN = TrainingPlan("softmax_cross_entropy", epochs=1, batch_size=32, learning_rate=0.1)

# What 600 digits, one epoch and seed 7 make of the starting model: one digest for all runtimes,
# every NumPy, BLAS, thread count and machine. If a change of the arithmetic is meant, record the
# new digest; if not, a device would no longer train what its neighbour trains.
DIGESTS = {
    "last": "e65dc40e945ca291",
    "dense": "9f33284ed026be2f",
    "all": "39d2882cab2158ed",
}


def _numbers(model: Model, tail: str) -> list[int]:
    return [tensor.index for tensor in trainable_tensors(model, tail)]


def _train(
    model: Model, data: Dataset, tail: str, *, seed: int = 7, max_samples: int | None = None
) -> Training:
    plan = replace(PLAN, learning_rate=0.05) if tail == "last" else PLAN
    return train(model, _numbers(model, tail), data, plan, seed=seed, max_samples=max_samples)


def _digest(model: Model, training: Training) -> str:
    return hashlib.sha256(model.patched(training.values)).hexdigest()[:16]


def _few(data: Dataset, count: int = 600) -> Dataset:
    return Dataset(data.inputs[:count], data.labels[:count])


@pytest.mark.parametrize("tail", ["last", "dense", "all"])
def test_trained_bits_are_the_recorded_ones(
    digits: Model, digits_train: Dataset, tail: str
) -> None:
    assert _digest(digits, _train(digits, _few(digits_train), tail)) == DIGESTS[tail]


# The same 600 digits with every option of local training at once.
_OPTIONS = replace(
    PLAN,
    schedule="cosine",
    proximal=0.1,
    clip_norm=0.5,
    class_weights=(1.0, 2.0, *[1.0] * 8),
    validation=0.1,
)
OPTION_DIGESTS = {8: "1c6ac5a3b5e15184", 0: "1793da0ef7ba1b3e"}


@pytest.mark.parametrize("fraction_bits", [8, 0])
def test_bits_trained_with_options_are_the_recorded_ones(
    digits: Model, digits_train: Dataset, fraction_bits: int
) -> None:
    plan = replace(_OPTIONS, fraction_bits=fraction_bits)
    numbers, data = _numbers(digits, "all"), _few(digits_train)
    digest = _digest(digits, train(digits, numbers, data, plan, seed=7))
    assert digest == OPTION_DIGESTS[fraction_bits]


def test_another_seed_trains_other_bits(digits: Model, digits_train: Dataset) -> None:
    """Control of the digests: they do depend on what they should depend on."""
    data = _few(digits_train)
    assert _digest(digits, _train(digits, data, "dense", seed=8)) != DIGESTS["dense"]


_SCRIPT = """
import sys
from tests.client.trainer.test_training import *
from tests.client.trainer.test_training import _digest, _few, _train
from fedlearn_demo.digits import MODEL_PATH, load_train
model = Model.parse(MODEL_PATH.read_bytes())
print(_digest(model, _train(model, _few(Dataset.from_arrays(*load_train(), model)), "all")))
"""


@pytest.mark.parametrize(
    "setting",
    [
        {"OPENBLAS_NUM_THREADS": "1"},
        {"OPENBLAS_NUM_THREADS": "4"},
        {"OPENBLAS_CORETYPE": "Nehalem"},  # SSE kernels: no fused multiply-add, other blocking
        {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F"},
    ],
    ids="-".join,
)
def test_trained_bits_do_not_depend_on_blas_or_threads(setting: dict[str, str]) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT],
        env={**os.environ, **setting},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.strip() == DIGESTS["all"]


_PRODUCT = """
import hashlib, numpy as np
rng = np.random.default_rng(0)
a, b = (rng.normal(size=(300, 300)).astype(np.float32) for _ in "ab")
print(hashlib.sha256((a @ b).tobytes()).hexdigest())
"""


def test_float_products_do_depend_on_the_kernel() -> None:
    """Control of the test above: the setting changes the kernel, and the kernel changes floats."""
    digests = [
        subprocess.run(
            [sys.executable, "-c", _PRODUCT],
            env={**os.environ, "OPENBLAS_CORETYPE": kernel},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for kernel in ("Nehalem", "Haswell")
    ]
    assert digests[0] != digests[1]


def test_gradients_point_where_finite_differences_do(digits: Model, digits_train: Dataset) -> None:
    """Whole network, against the float64 loss of the dequantised network without any rounding."""
    data = _few(digits_train, 64)
    numbers = _numbers(digits, "all")
    tail = Tail(digits, numbers)
    match(tail, digits, data.inputs)
    judged = SoftmaxCrossEntropy().judge(tail.forward((data.inputs,)), data.labels)
    tail.backward(judged.errors)
    rng = np.random.default_rng(3)
    weights = {number: digits.array(number).astype(np.float64) for number in numbers}
    for part in tail.layers:
        if not isinstance(part, WeightedLayer):
            continue
        number = part.weight_index
        scale = digits.tensors[number].scales
        mine = np.asarray(part._weight_gradient, np.float64).ravel() * part._error_scale
        mine *= part.input.scale
        places = rng.choice(mine.size, min(mine.size, 40), replace=False)
        theirs = []
        for place in places:
            step = 0.5
            moved = []
            for sign in (1, -1):
                changed = weights[number].copy()
                changed.ravel()[place] += sign * step
                moved.append(_float_loss(digits, {**weights, number: changed}, data))
            channel = place // (mine.size // weights[number].shape[0])
            real = step * float(scale[channel if len(scale) > 1 else 0])
            theirs.append((moved[0] - moved[1]) / (2 * real))
        a, b = mine[places], np.array(theirs)
        cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        assert cosine > 0.95, f"{part.operator.name} {part.operator.index}: {cosine}"
        assert 0.8 < np.linalg.norm(a) / np.linalg.norm(b) < 1.25


def _float_loss(model: Model, weights: dict[int, NDArray[Any]], data: Dataset) -> float:
    """The digits network in float64, written from its definition."""
    first = model.tensors[model.inputs[0]]
    x = (data.inputs.astype(np.float64) - first.zero_point) * first.scale
    for operator in model.operators:
        if operator.name in ("RESHAPE", "SOFTMAX"):
            x = x.reshape(len(x), -1)
            continue
        _, number, bias = operator.inputs
        tensor = model.tensors[number]
        shape = (-1,) + (1,) * (len(tensor.shape) - 1)
        w = weights[number] * tensor.scales.astype(np.float64).reshape(shape)
        b = weights[bias] * model.tensors[bias].scales
        if operator.name == "CONV_2D":
            padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
            places = x.shape[1] // 2
            y = np.zeros((len(x), places, places, len(w)))
            for i, j in np.ndindex(3, 3):
                y += padded[:, i : i + 2 * places : 2, j : j + 2 * places : 2] @ w[:, i, j].T
            x = np.maximum(y + b, 0)
        else:
            x = x @ w.T + b
            if operator.index == 3:
                x = np.maximum(x, 0)
    x = x - x.max(axis=1, keepdims=True)
    return float((np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), data.labels]).sum())


@pytest.mark.parametrize(("tail", "least"), [("last", 0.75), ("dense", 0.88), ("all", 0.9)])
def test_it_learns_the_digits_that_the_model_has_not_seen(
    digits: Model, digits_train: Dataset, digits_test: Dataset, tail: str, least: float
) -> None:
    plan = replace(PLAN, epochs=4, learning_rate=0.05)
    training = train(digits, _numbers(digits, tail), digits_train, plan, seed=7)
    assert training.after.loss < training.before.loss / 2
    trained = digits.patched(training.values)
    assert evaluate(trained, digits_test).known_accuracy > least
    untouched = set(range(len(digits.tensors))) - set(training.values)
    for number in untouched:
        if digits.tensors[number].is_constant:
            after = Model.parse(trained).array(number)
            np.testing.assert_array_equal(digits.array(number), after)


@pytest.mark.parametrize("limit", [weighted.LARGEST_STEP, 1e9], ids=["clipped", "control"])
def test_a_far_too_large_learning_rate_does_not_kill_the_model(
    digits: Model,
    digits_train: Dataset,
    digits_test: Dataset,
    limit: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weighted, "LARGEST_STEP", limit)
    plan = replace(PLAN, learning_rate=0.4, batch_size=16)
    training = train(digits, _numbers(digits, "all"), digits_train, plan, seed=7)
    accuracy = evaluate(digits.patched(training.values), digits_test).known_accuracy
    assert accuracy < 0.2 if limit > 1e6 else accuracy > 0.85


@pytest.mark.parametrize("limit", [weighted.LARGEST_STEP, 1e9], ids=["clipped", "control"])
def test_nor_does_it_where_only_biases_train(
    digits: Model,
    digits_train: Dataset,
    digits_test: Dataset,
    limit: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weighted, "LARGEST_STEP", limit)
    plan = replace(PLAN, learning_rate=0.4, batch_size=16)
    biases = [n for n in _numbers(digits, "all") if digits.tensors[n].dtype == "int32"]
    training = train(digits, biases, digits_train, plan, seed=7)
    accuracy = evaluate(digits.patched(training.values), digits_test).known_accuracy
    assert accuracy < 0.2 if limit > 1e6 else accuracy > 0.45


def test_real_labels_that_float32_cannot_hold_are_refused(digits: Model) -> None:
    x = np.zeros((2, 784), np.uint8)
    for bad in (1e300, np.inf, np.nan):
        with pytest.raises(DatasetError, match="finite"):
            Dataset.from_arrays(x, np.full((2, 10), bad), digits, "mean_squared_error")


def test_float_samples_are_quantised_in_little_memory(digits: Model) -> None:
    x = np.random.default_rng(5).uniform(-0.02, 1.02, (4013, 784)).astype(np.float32)
    entry = digits.tensors[digits.entry]
    tracemalloc.start()
    made = Dataset.from_arrays(x, np.zeros(len(x), int), digits).inputs
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < made.nbytes + (4 << 20)
    steps = np.rint(x.astype(np.float64) / entry.scale) + entry.zero_point
    np.testing.assert_array_equal(made.reshape(x.shape), np.clip(steps, -128, 127).astype(np.int8))
    x[-1, -1] = np.nan
    with pytest.raises(DatasetError, match="NaN"):
        Dataset.from_arrays(x, np.zeros(len(x), int), digits)


def test_small_batches_calibrate_as_one_large_one_does(
    digits: Model, digits_train: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the arithmetic that is tried first is wrong in samples of a later batch only."""
    usual = WeightedLayer.arithmetics
    monkeypatch.setattr(WeightedLayer, "arithmetics", lambda layer: usual(layer)[::-1])
    chosen: dict[int, list[Arithmetic]] = {}
    choose = WeightedLayer.choose

    def note(layer: WeightedLayer, arithmetic: Arithmetic) -> None:
        chosen.setdefault(layer.operator.index, []).append(arithmetic)
        choose(layer, arithmetic)

    monkeypatch.setattr(WeightedLayer, "choose", note)
    last = []
    for batch in (1, 5, 16):
        chosen.clear()
        tail = Tail(digits, _numbers(digits, "all"))
        match(tail, digits, digits_train.inputs, batch=batch)
        last.append({index: each[-1] for index, each in chosen.items()})
    assert last[0] == last[1] == last[2]
    assert max(map(len, chosen.values())) > 2, "some layer had to try a second one"


def test_more_samples_than_allowed_are_drawn_by_the_seed(
    digits: Model, digits_train: Dataset
) -> None:
    training = _train(digits, digits_train, "last", max_samples=50)
    assert training.samples == 50


def test_progress_runs_from_zero_to_one(digits: Model, digits_train: Dataset) -> None:
    seen: list[tuple[int, float]] = []
    plan = TrainingPlan("softmax_cross_entropy", epochs=2, batch_size=100, learning_rate=0.1)
    train(
        digits,
        _numbers(digits, "last"),
        _few(digits_train),
        plan,
        seed=1,
        progress=lambda epoch, done, loss: seen.append((epoch, done)),
    )
    assert [epoch for epoch, _ in seen] == [0] * 6 + [1] * 6
    assert [round(done * 12) for _, done in seen] == list(range(1, 13))


def test_unknown_loss_and_foreign_tensors_are_refused(digits: Model, digits_train: Dataset) -> None:
    plan = TrainingPlan("hinge", epochs=1, batch_size=32, learning_rate=0.1)
    with pytest.raises(TrainerError, match="hinge"):
        train(digits, _numbers(digits, "last"), _few(digits_train), plan, seed=1)
    for numbers in ([0], [99], [15], []):
        with pytest.raises(UnsupportedOperatorError):
            train(digits, numbers, _few(digits_train), PLAN, seed=1)


def test_sample_order_is_a_permutation_of_its_own() -> None:
    orders = {tuple(sample_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert device_seed(1, "a") != device_seed(1, "b") != device_seed(2, "b")
    # Recorded: the order is part of what makes a training repeatable.
    assert sample_order(1, 1, 8).tolist() == [4, 6, 0, 3, 5, 7, 2, 1]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: int, words: str) -> None:
    """The known-answer vectors that its authors publish with Random123."""
    drawn = philox(np.array(counter, np.uint64).reshape(4, 1), key)
    assert " ".join(f"{int(word):08x}" for word in drawn[:, 0]) == words


def test_training_a_file(digits_file: bytes, tmp_path: Path, digits_train: Dataset) -> None:
    model, data, out = tmp_path / "m.tflite", tmp_path / "d.npz", tmp_path / "new.tflite"
    model.write_bytes(digits_file)
    few = _few(digits_train)
    np.savez(data, x=few.inputs, y=few.labels)
    result = train_file(model, data, out, PLAN, seed=7)
    assert hashlib.sha256(out.read_bytes()).hexdigest()[:16] == DIGESTS["all"]
    assert result.after.known_accuracy > result.before.known_accuracy + 0.1
    assert 0 < result.changed_weights < 52_138


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.zeros((3, 28, 28), np.uint8)}, "holds x, but no y.*--loss mean_squared_error"),
        ({"a": np.zeros(3), "y": np.zeros(3)}, "holds a, y, but no x"),
        ({"x": np.zeros((3, 1, 784, 1)), "y": np.zeros(3, int)}, r"reshape\(len\(x\), -1\)"),
        ({"x": np.ones((3, 784)), "y": np.eye(10, dtype=int)[:3]}, "--loss sigmoid_cross_entropy"),
        ({"x": np.zeros((3, 5), np.uint8), "y": np.zeros(3, int)}, "the model takes"),
        ({"x": np.zeros((3, 784), np.uint8), "y": np.zeros(2, int)}, "labels are"),
        ({"x": np.zeros((3, 784), np.uint8), "y": np.array([0, 1, 10])}, "10 classes"),
        ({"x": np.zeros((3, 784), np.uint8), "y": np.array([0.0, 1, 2])}, "labels are"),
        ({"x": np.full((3, 784), np.nan), "y": np.zeros(3, int)}, "NaN"),
        ({"x": np.zeros((3, 784), np.int32), "y": np.zeros(3, int)}, "int32"),
        ({"x": np.zeros((0, 784), np.uint8), "y": np.zeros(0, int)}, "no samples"),
        ({"x": np.full((3, 784), 200.0), "y": np.zeros(3, int)}, "100% of the values lie outside"),
        ({"x": np.ones((3, 784)), "y": np.zeros((3, 10), int)}, r"argmax"),
        ({"x": np.array([None]), "y": np.zeros(1, int)}, "no usable"),
    ],
)
def test_unfit_data_is_refused_with_the_reason(
    digits: Model, tmp_path: Path, arrays: dict[str, NDArray[Any]], reason: str
) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=reason):
        Dataset.load(path, digits)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((2, 49, 10, 1), True),
        ((2, 49, 10), True),
        ((2, 1, 49, 10), True),
        ((2, 490), True),
        ((2, 10, 49, 1), False),
        ((2, 10, 49), False),
        ((2, 7, 70), False),
        ((2, 490, 1), False),
    ],
)
def test_only_the_models_order_of_axes_is_taken(shape: tuple[int, ...], fits: bool) -> None:
    model = Model.parse(KEYWORDS_PATH.read_bytes())
    x = np.arange(980).reshape(shape).astype(np.int8)
    if fits:
        taken = Dataset.from_arrays(x, np.zeros(2, int), model).inputs
        np.testing.assert_array_equal(taken, x.reshape(2, 49, 10, 1))
        return
    with pytest.raises(DatasetError, match=r"transpose|reshape"):
        Dataset.from_arrays(x, np.zeros(2, int), model)


def test_files_that_are_no_data_are_refused(digits: Model, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no data file"):
        Dataset.load(tmp_path / "absent.npz", digits)
    with pytest.raises(MissingFileError, match="there are no windows"):  # a folder is a ring
        Dataset.load(tmp_path, digits)
    good = tmp_path / "good.npz"
    np.savez_compressed(good, x=np.arange(7840).reshape(10, 784) % 251 / 251, y=np.arange(10))
    damaged = bytearray(good.read_bytes())
    damaged[200:300] = bytes(100)
    for junk in (b"", b"PK\x03\x04", b"x,y\n1,2\n", b"\x93NUMPY\x01\x00", bytes(damaged)):
        path = tmp_path / "junk.npz"
        path.write_bytes(junk)
        with pytest.raises(DatasetError, match="no usable"):
            Dataset.load(path, digits)


def test_uint8_floats_and_int8_mean_the_same(digits: Model, tmp_path: Path) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (5, 28, 28), np.uint8)
    labels = np.arange(5)
    sets = [
        Dataset.from_arrays(x, labels, digits)
        for x in (raw, raw / 255.0, (raw.astype(int) - 128).astype(np.int8))
    ]
    assert sets[0].inputs.shape == (5, 28, 28, 1)
    for other in sets[1:]:
        np.testing.assert_array_equal(sets[0].inputs, other.inputs)


@pytest.mark.parametrize("name", ["pipe", "folder"])
def test_a_result_never_replaces_what_is_no_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path) if name == "pipe" else path.mkdir()
    with pytest.raises(StorageError, match="no regular file"):
        write_durably(path, b"x")
    assert not path.is_file()
