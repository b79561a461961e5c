# SPDX-License-Identifier: Apache-2.0
"""Real messages against protocol.cddl, judged by pycddl (a Rust CDDL validator).

pycddl 0.6 is no full oracle of refusals: its regular expressions are not anchored, and a `bstr`
matches a tagged one too. The controls below keep to what it does check.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import cbor2
import pycddl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.wire import codec
from tests.client.wire.examples import EXAMPLES, UPDATE
from tests.client.wire.strategies import BY_KIND

CDDL = files("fedlearn.wire").joinpath("protocol.cddl").read_text()
# The first rule of a CDDL file is its root.
SCHEMAS = {kind: pycddl.Schema(f"start = {kind}\n{CDDL}") for kind in BY_KIND}


def refuses(kind: str, plain: object) -> bool:
    try:
        SCHEMAS[kind].validate_cbor(cbor2.dumps(plain, canonical=True))
    except pycddl.ValidationError:
        return True
    return False


@pytest.mark.parametrize("kind", BY_KIND)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_every_message_is_described(kind: str, data: st.DataObject) -> None:
    SCHEMAS[kind].validate_cbor(codec.encode(data.draw(BY_KIND[kind])))


def test_the_file_as_it_is_has_all_kinds_at_its_root() -> None:
    assert pycddl.Schema(CDDL)
    root = next(line for line in CDDL.splitlines() if line.startswith("message = "))
    assert root.removeprefix("message = ").split(" / ") == list(BY_KIND)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_control_a_message_without_one_of_its_keys_is_refused(message: Any) -> None:
    plain = cbor2.loads(codec.encode(message))
    kind = plain["kind"]
    assert not refuses(kind, plain)
    assert not refuses(kind, {**plain, "later": 1})
    for key in plain.keys() - {"failure", "ranges", "token"}:
        assert refuses(kind, {name: value for name, value in plain.items() if name != key}), key
        assert refuses(kind, {**plain, key: None}), key


@pytest.mark.parametrize(
    "values",
    [
        {"v": 2},
        {"kind": "wait"},
        {"round": -1},
        {"round": 2**63},
        {"round": 1.0},
        {"model": bytes(31)},
        {"device": ""},
        {"tensors": [1]},
        {"tensors": [{"index": 1, "encoding": 0, "data": b"x"}]},
        {"tensors": [{"index": 1, "encoding": 1, "data": b"x"}]},
        {"tensors": [{"index": 1, "encoding": 9, "data": b"x"}]},
        {"tensors": [{"index": -1, "encoding": 4, "data": b"x"}]},
        {"metrics": {"loss_before": 1.0}},
    ],
    ids=repr,
)
def test_control_a_wrong_update_is_refused(values: dict[str, object]) -> None:
    assert refuses("update", {**cbor2.loads(codec.encode(UPDATE)), **values})


@pytest.mark.parametrize(
    ("name", "value"), [("accuracy_after", 1.5), ("train_s", -1.0), ("loss_before", 1)]
)
def test_control_a_wrong_metric_is_refused(name: str, value: float) -> None:
    plain = cbor2.loads(codec.encode(UPDATE))
    plain["metrics"][name] = value
    assert refuses("update", plain)
