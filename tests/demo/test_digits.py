# SPDX-License-Identifier: Apache-2.0
"""The digits task: its files are what the README says, and the split is a split."""

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.dataset import Dataset
from fedlearn.evaluation import evaluate
from fedlearn.model import Model
from fedlearn_demo.digits import MODEL_PATH, dirichlet_split, load_test, load_train
from fedlearn_demo.digits.dataset import DATA_PATH, MIN_SAMPLES

LABELS = load_train()[1]


@pytest.mark.parametrize("path", [DATA_PATH, MODEL_PATH], ids=lambda path: path.name)
def test_file_has_the_digest_of_the_readme(path: Path) -> None:
    text = DATA_PATH.with_name("README.md").read_text()
    (stated,) = re.findall(rf"`{re.escape(path.name)}` \|.*`([0-9a-f]{{64}})`", text)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == stated


def test_data_set() -> None:
    for (x, y), count in ((load_train(), 4000), (load_test(), 1000)):
        assert x.shape == (count, 28, 28, 1)
        assert y.shape == (count,)
        assert x.dtype == y.dtype == np.uint8
        assert np.bincount(y).tolist() == [count // 10] * 10
        assert x.max() == 255


def test_no_test_image_is_in_the_training_set() -> None:
    train, test = ({image.tobytes() for image in load()[0]} for load in (load_train, load_test))
    assert len(train | test) == 5000
    assert not train & test


def test_model_is_a_usual_int8_classifier() -> None:
    model = Model.parse(MODEL_PATH.read_bytes())
    assert [operator.name for operator in model.operators] == [
        "CONV_2D",
        "CONV_2D",
        "RESHAPE",
        "FULLY_CONNECTED",
        "FULLY_CONNECTED",
        "SOFTMAX",
    ]
    weighted = [op for op in model.operators if op.name in ("CONV_2D", "FULLY_CONNECTED")]
    constants = [model.array(index) for op in weighted for index in op.inputs[1:3]]
    assert [array.dtype for array in constants] == [np.int8, np.int32] * 4
    assert sum(array.size for array in constants) == 52_138


def test_model_knows_the_digits_0_to_4_alone() -> None:
    model = Model.parse(MODEL_PATH.read_bytes())
    x, y = load_test()
    test = Dataset.from_arrays(x, y, model)
    assert 0.40 <= evaluate(model.data, test).known_accuracy <= 0.55
    known = y < 5
    assert evaluate(model.data, Dataset.from_arrays(x[known], y[known], model)).known_accuracy > 0.9
    assert (
        evaluate(model.data, Dataset.from_arrays(x[~known], y[~known], model)).known_accuracy < 0.05
    )
    # Control: labels that belong to other images are met by chance alone.
    assert evaluate(model.data, Dataset(test.inputs, np.roll(test.labels, 1))).known_accuracy < 0.2


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 60), st.sampled_from([0.05, 0.5, 5.0]), st.integers(0, 2**32), st.integers(1, 12)
)
def test_split_deals_every_sample_to_one_client(
    clients: int, alpha: float, seed: int, classes: int
) -> None:
    labels = np.arange(1000) % classes
    parts = dirichlet_split(labels, clients, alpha, seed)
    assert len(parts) == clients
    assert min(len(part) for part in parts) >= MIN_SAMPLES
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    again = dirichlet_split(labels, clients, alpha, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_split_depends_on_the_seed() -> None:
    first, second = (dirichlet_split(LABELS, 10, 0.5, seed) for seed in (0, 1))
    assert [len(part) for part in first] != [len(part) for part in second]


def test_small_alpha_is_skewed() -> None:
    def top_share(alpha: float) -> float:
        """Mean share of a client's most frequent class; 0.1 is no skew."""
        parts = dirichlet_split(LABELS, 10, alpha, 0)
        return np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts])

    shares = [top_share(alpha) for alpha in (0.05, 0.5, 5.0, 1000.0)]
    assert all(more > less for more, less in pairwise(shares))
    assert shares[-1] < 0.12


@pytest.mark.parametrize("clients", [0, len(LABELS) // MIN_SAMPLES + 1])
def test_split_refuses_what_cannot_be_dealt(clients: int) -> None:
    with pytest.raises(ValueError, match="cannot serve"):
        dirichlet_split(LABELS, clients)
