# SPDX-License-Identifier: Apache-2.0
"""The table of operators: sound graphs pass, and the runtime makes the shapes that it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tflite

from fedlearn.errors import ModelError
from fedlearn.model import Model
from fedlearn.model.validate import _RULES
from fedlearn.runtime import Session
from tests.client.model import samples
from tests.client.networks import Network

_NETWORKS = {
    each.__name__: each
    for each in (samples.separable, samples.prefixed, samples.wide, samples.further)
}


@pytest.mark.parametrize("name", _NETWORKS)
def test_the_runtime_makes_the_shapes_of_the_table(name: str) -> None:
    """A session compares the shapes of the file with the kernels'; all operators run."""
    model = Model.parse(_NETWORKS[name]().write())
    inputs = np.zeros(model.tensors[model.entry].shape, np.int8)
    batch = model.tensors[model.entry].shape[0]
    for operator in model.operators:
        if all(model.tensors[number].shape[0] == batch for number in operator.outputs):
            Session(model.cut(operator.outputs)).run_all(inputs)


def test_most_of_the_table_is_run() -> None:
    """Control of the test above."""
    run = {
        operator.name
        for make in _NETWORKS.values()
        for operator in Model.parse(make().write()).operators
    }
    assert run <= set(_RULES)
    assert len(run) > 0.7 * len(_RULES)


def test_options_of_the_table_are_the_schemas() -> None:
    shared = {
        **dict.fromkeys(("MAX_POOL_2D", "AVERAGE_POOL_2D"), "POOL2D"),
        **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"), "REDUCER"),
        **dict.fromkeys(("MAXIMUM", "MINIMUM"), "MAXIMUMMINIMUM"),
        "L2_NORMALIZATION": "L2NORM",
    }
    names = {code: name for name, code in vars(tflite.BuiltinOptions).items()}
    for operator, rule in _RULES.items():
        if rule.options is not None:
            name = names[rule.options].removesuffix("Options").upper()
            assert name == shared.get(operator, operator.replace("_", "")), operator


def _wrong(change: Callable[[Network], Any], network: Network | None = None) -> ModelError:
    network = network or samples.separable()
    change(network)
    with pytest.raises(ModelError) as caught:
        Model.parse(network.write())
    return caught.value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda n: n.operators.reverse(), "nothing before it makes tensor"),
        (lambda n: n.operators.append(n.operators[0]), "made twice"),
        (lambda n: n.operators[1].update(outputs=[4]), "made twice"),
        (lambda n: n.operators[0]["inputs"].append(0), "it has 4 inputs"),
        (lambda n: n.operators[0].update(inputs=[0, 1, -1]), "lacks an input"),
        (lambda n: n.operators[0].update(options=None), "options of type 0"),
        (lambda n: n.operators[0].update(options=n.operators[1]["options"]), "options of type 2"),
        (lambda n: n.tensors[0].update(shape=(1, 9, 8, 2)), r"it makes \(1, 5, 4, 4\)"),
        (lambda n: n.tensors[0].update(dtype=tflite.TensorType.UINT8), "not quantised int8"),
        (lambda n: n.tensors[3].update(dtype=tflite.TensorType.INT16), "is int16, not int8"),
        (lambda n: n.tensors[3].update(scales=np.ones(0), zeros=np.zeros(0)), "has 0 scales"),
        (
            lambda n: n.tensors[3].update(scales=np.array([np.nan], np.float32)),
            "no valid quantisation",
        ),
        (
            lambda n: n.tensors[3].update(scales=np.array([1e30], np.float32)),
            "no valid quantisation",
        ),
        (lambda n: n.tensors[1].update(axis=2), "no valid quantisation"),
        (lambda n: n.tensors[2].update(shape=(2, 2)), "corrupt|bias"),
        (lambda n: n.tensors[1].update(shape=(4, 3, 3, 3)), "bytes at"),
        (lambda n: n.tensors[0].update(shape=(1, 1 << 20, 1 << 20, 2)), "activations"),
        (lambda n: n.tensors[3].update(shape=(1, 0, 4, 4)), "empty shape"),
    ],
)
def test_what_cannot_be_computed_is_refused(change: Callable[[Network], Any], reason: str) -> None:
    error = str(_wrong(change))
    assert re.search(reason, error), error
