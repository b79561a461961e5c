# SPDX-License-Identifier: Apache-2.0
"""Messages survive the way over the wire; what is no message is refused with the right status."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import ProtocolError
from fedlearn.wire import codec
from fedlearn.wire.messages import (
    CheckIn,
    EncodedTensor,
    Encoding,
    Message,
    TrainOrder,
    Update,
    Wait,
)
from tests.client.wire.examples import EXAMPLES, MAX_BYTES, METRICS, UPDATE
from tests.client.wire.strategies import BY_KIND, messages


def status_of(body: bytes, kind: Any = Update, max_bytes: int = MAX_BYTES) -> int:
    with pytest.raises(ProtocolError) as caught:
        codec.decode(kind, body, max_bytes=max_bytes)
    return caught.value.status


def changed(**values: object) -> bytes:
    """The example update with keys of its map changed, in the deterministic form."""
    plain = cbor2.loads(codec.encode(UPDATE))
    return cbor2.dumps({**plain, **values}, canonical=True)


@pytest.mark.parametrize("kind", BY_KIND)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_round_trip(kind: str, data: st.DataObject) -> None:
    message = data.draw(BY_KIND[kind])
    body = codec.encode(message)
    assert codec.decode(type(message), body, max_bytes=len(body)) == message
    assert codec.encode(message) == body


@settings(max_examples=100, deadline=None)
@given(messages)
def test_the_bytes_are_core_deterministic(message: Message) -> None:
    """cbor2's canonical form (RFC 7049) is that of RFC 8949, 4.2.1: keys ascend by their bytes."""

    def check(value: object) -> None:
        if isinstance(value, dict):
            keys = [cbor2.dumps(key) for key in value]
            assert keys == sorted(keys)
        for each in value.values() if isinstance(value, dict) else value:  # type: ignore[attr-defined]
            if isinstance(each, dict | list):
                check(each)

    body = codec.encode(message)
    plain = cbor2.loads(body)
    check(plain)
    # Another order of the same keys gives the same bytes.
    assert cbor2.dumps(dict(reversed(plain.items())), canonical=True) == body


def test_a_reply_of_either_kind() -> None:
    for reply in (m for m in EXAMPLES if isinstance(m, TrainOrder | Wait)):
        assert codec.decode((TrainOrder, Wait), codec.encode(reply), max_bytes=MAX_BYTES) == reply
    assert status_of(codec.encode(UPDATE), (TrainOrder, Wait)) == 422


def test_an_integer_in_a_float_field_has_the_bytes_of_the_float() -> None:
    assert codec.encode(Wait(5, "")) == codec.encode(Wait(5.0, ""))


def test_a_body_above_the_limit_is_refused_before_it_is_read() -> None:
    body = codec.encode(UPDATE)
    assert codec.decode(Update, body, max_bytes=len(body)) == UPDATE
    assert status_of(body, max_bytes=len(body) - 1) == 413
    assert status_of(b"\xff" * 11, max_bytes=10) == 413


def test_an_unknown_key_is_ignored_at_every_level() -> None:
    plain = cbor2.loads(codec.encode(UPDATE))
    plain["battery"] = {"volts": 3.5, "history": [1, None, -1]}
    plain["metrics"]["joules"] = 5
    plain["tensors"][0]["note"] = "x"
    assert codec.decode(Update, cbor2.dumps(plain, canonical=True), max_bytes=MAX_BYTES) == UPDATE


@pytest.mark.parametrize(
    "values",
    [
        {"v": 2},
        {"v": True},
        {"v": "1"},
        {"kind": "wait"},
        {"kind": 1},
        {"kind": ["update"]},
        {"round": -1},
        {"round": 2**63},
        {"round": 1.0},
        {"round": True},
        {"samples": -1},
        {"samples": None},
        {"model": bytes(31)},
        {"model": bytes(33)},
        {"model": "x" * 32},
        {"device": ""},
        {"device": "a" * 65},
        {"device": "a b"},
        {"device": "../a"},
        {"device": "a\n"},
        {"device": b"a"},
        {"task": "ä"},
        {"metrics": []},
        {"metrics": {}},
        {"tensors": {}},
        {"tensors": [1]},
        {"tensors": [{"index": 1, "encoding": 4}]},
        {"tensors": [{"index": 1, "encoding": Encoding.CODES, "data": cbor2.CBORTag(72, b"")}]},
        {"tensors": [{"index": 1, "encoding": Encoding.INT8, "data": cbor2.CBORTag(77, b"")}]},
        {"tensors": [{"index": 1, "encoding": Encoding.INT8, "data": b""}]},
        {"tensors": [{"index": 1, "encoding": [], "data": b""}]},
        {"tensors": [{"index": 1, "encoding": 4, "data": ""}]},
    ],
    ids=repr,
)
def test_a_wrong_value_is_refused(values: dict[str, object]) -> None:
    assert status_of(changed(**values)) == 422


def test_the_control_of_wrong_values() -> None:
    """The way these bodies are built is itself accepted."""
    data = cbor2.CBORTag(72, b"\x01")
    body = changed(round=8, tensors=[{"index": 1, "encoding": Encoding.INT8, "data": data}])
    tensors = (EncodedTensor(1, Encoding.INT8, b"\x01"),)
    expected = dataclasses.replace(UPDATE, round=8, tensors=tensors)
    assert codec.decode(Update, body, max_bytes=MAX_BYTES) == expected


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(METRICS)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_metric_is_a_nan_or_infinite(field: str, value: float) -> None:
    changes: dict[str, Any] = {field: value}
    metrics = dataclasses.replace(METRICS, **changes)
    assert status_of(codec.encode(dataclasses.replace(UPDATE, metrics=metrics))) == 422


def _required(kind: Any) -> list[str]:
    fields = dataclasses.fields(kind)
    return [field.name for field in fields if field.default is dataclasses.MISSING]


@pytest.mark.parametrize("name", _required(UPDATE))
def test_a_missing_field_is_named(name: str) -> None:
    plain = cbor2.loads(codec.encode(UPDATE))
    del plain[name]
    with pytest.raises(ProtocolError, match=f"update.{name} is missing"):
        codec.decode(Update, cbor2.dumps(plain, canonical=True), max_bytes=MAX_BYTES)


def test_no_failure_is_an_absent_key() -> None:
    assert "failure" not in cbor2.loads(codec.encode(CheckIn("digits", "board-1")))
    body = {"v": 1, "kind": "checkin", "task": "a", "device": "b", "failure": None}
    assert status_of(cbor2.dumps(body, canonical=True), CheckIn) == 422


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_is_no_message_of_another_kind(message: Message) -> None:
    body = codec.encode(message)
    for kind in {type(example) for example in EXAMPLES}:
        if isinstance(message, kind):
            assert codec.decode(kind, body, max_bytes=MAX_BYTES) == message
        else:
            assert status_of(body, kind) == 422


def test_the_codec_does_not_load_numpy() -> None:
    """The agent decodes messages while it waits, in a few MB."""
    program = "import sys, fedlearn.wire.codec; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("field", ["epochs", "batch_size"])
def test_a_plan_of_no_epoch_or_of_empty_batches_is_refused(field: str) -> None:
    changes: dict[str, Any] = {field: 0}
    order = next(m for m in EXAMPLES if isinstance(m, TrainOrder))
    wrong = dataclasses.replace(order, plan=dataclasses.replace(order.plan, **changes))
    assert status_of(codec.encode(wrong), TrainOrder) == 422


def test_optional_fields_may_be_absent() -> None:
    plain = cbor2.loads(codec.encode(UPDATE))
    del plain["ranges"], plain["metrics"]["accuracy_personal"]
    body = cbor2.dumps(plain, canonical=True)
    update = codec.decode(Update, body, max_bytes=MAX_BYTES)
    assert update.ranges == ()
    assert update.metrics.accuracy_personal is None
    assert codec.encode(update) == body
