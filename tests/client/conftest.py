# SPDX-License-Identifier: Apache-2.0
"""What the tests of the client share: the digits task as the model that people have."""

from __future__ import annotations

import numpy as np
import pytest

from fedlearn.dataset import Dataset
from fedlearn.model import Model
from fedlearn_demo.digits import MODEL_PATH, load_test, load_train


@pytest.fixture(scope="session")
def digits_file() -> bytes:
    """The starting model of the digits task, as TensorFlow's converter wrote it."""
    return MODEL_PATH.read_bytes()


@pytest.fixture(scope="session")
def digits(digits_file: bytes) -> Model:
    return Model.parse(digits_file)


@pytest.fixture(scope="session")
def digits_train(digits: Model) -> Dataset:
    return Dataset.from_arrays(*load_train(), digits)


@pytest.fixture(scope="session")
def digits_test(digits: Model) -> Dataset:
    return Dataset.from_arrays(*load_test(), digits)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)
