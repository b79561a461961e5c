# SPDX-License-Identifier: Apache-2.0
"""Messages to CBOR and back.

The mapping follows the dataclasses of `messages`: a map with the fields' names as keys,
an absent key for a field that has its default, and two keys more in every message: `v`, the
protocol's version, and `kind`.

A key that is not known is ignored. Boards live for years and are updated one by one, so both sides
must be able to add an optional field without a new version; what an old peer must not ignore needs
`v: 2`. The bytes of such keys count against all limits.

`encode` trusts its caller; `decode` trusts nobody.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from cbor2 import CBORTag

from fedlearn.errors import ProtocolError
from fedlearn.wire import strict_cbor
from fedlearn.wire.messages import (
    PROTOCOL_VERSION,
    Certificate,
    CheckIn,
    Difference,
    EncodedTensor,
    Encoding,
    Enrolment,
    Message,
    Pattern,
    Range,
    Receipt,
    Refusal,
    TaskDescriptor,
    TrainOrder,
    Update,
    Wait,
)

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=Message)
_Reader = Callable[[object, str], Any]

_KINDS: dict[str, Any] = {
    "task": TaskDescriptor,
    "enrolment": Enrolment,
    "certificate": Certificate,
    "checkin": CheckIn,
    "train": TrainOrder,
    "wait": Wait,
    "update": Update,
    "difference": Difference,
    "receipt": Receipt,
    "refusal": Refusal,
}
_NAMES: dict[type[Message], str] = {kind: name for name, kind in _KINDS.items()}

# An array of plain integers is an RFC 8746 typed array; all other encodings are byte strings.
_TAGS: dict[int, int] = {Encoding.INT8: 72, Encoding.INT16: 77, Encoding.INT32: 78}
_ENCODED = (EncodedTensor, Difference)


def encode(message: Message) -> bytes:
    """Encode a message; the same message always gives the same bytes."""
    return strict_cbor.dumps(
        {"v": PROTOCOL_VERSION, "kind": _NAMES[type(message)], **_to_map(message)}
    )


@overload
def decode(kind: type[M], body: bytes, *, max_bytes: int) -> M: ...
@overload
def decode(kind: tuple[type[M], type[N]], body: bytes, *, max_bytes: int) -> M | N: ...
def decode(kind: Any, body: bytes, *, max_bytes: int) -> Any:
    """Decode a message of one kind, or of any of several kinds.

    Raises `ProtocolError` and nothing else, whatever the bytes are: 413 for more than `max_bytes`,
    400 for what is not deterministic CBOR, 422 for another kind or version, a missing field, a
    wrong type, a value outside its range, a NaN or an infinity.
    """
    names = [_NAMES[each] for each in (kind if isinstance(kind, tuple) else (kind,))]
    values = strict_cbor.loads(body, max_bytes=max_bytes)
    if not isinstance(values, dict):
        raise _refused("message", "is not a map")
    version = values.get("v")
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the peer does not speak protocol version {PROTOCOL_VERSION}",
            status=422,
            hint="update the older of the two sides",
        )
    name = values.get("kind")
    if not isinstance(name, str) or name not in names:
        raise _refused("message", f"is not of kind {' or '.join(names)}")
    return _reader(_KINDS[name])(values, name)


def _to_map(message: Any) -> dict[str, Any]:
    """Turn a dataclass into a map, without the fields that have their default."""
    kind: Any = type(message)
    hints = _hints(kind)
    values = {}
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if value != field.default:
            # Python takes 5 for a float field; the bytes must be those of 5.0.
            values[field.name] = float(value) if hints[field.name] is float else _to_plain(value)
    if isinstance(message, _ENCODED) and message.encoding in _TAGS:
        values["data"] = CBORTag(_TAGS[message.encoding], message.data)
    return values


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _to_map(value)
    if isinstance(value, tuple):
        return [_to_plain(each) for each in value]
    return value


@cache
def _reader(hint: Any) -> _Reader:
    """Build the function that checks and converts a value of the type `hint`.

    It takes the value and its place in the message, for the error, and raises `ProtocolError`.
    """
    if dataclasses.is_dataclass(hint):
        return _dataclass_reader(hint)  # type: ignore[arg-type]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _constrained_reader(_reader(arguments[0]), *arguments[1:])
    if origin is tuple:  # tuple[X, ...]
        return _tuple_reader(_reader(arguments[0]))
    if origin in (Union, types.UnionType):  # X | None: None is an absent key
        return _reader(arguments[0])
    return _plain_reader(hint)


def _dataclass_reader(kind: type) -> _Reader:
    hints = get_type_hints(kind, include_extras=True)
    readers = [
        (field.name, field.default is dataclasses.MISSING, _reader(hints[field.name]))
        for field in dataclasses.fields(kind)
    ]
    tagged = issubclass(kind, _ENCODED)

    def read(values: object, where: str) -> Any:
        if not isinstance(values, dict):
            raise _refused(where, "is not a map")
        if tagged:
            values = _untagged(values, where)
        known = {}
        for name, required, reader in readers:
            if name in values:
                known[name] = reader(values[name], f"{where}.{name}")
            elif required:
                raise _refused(f"{where}.{name}", "is missing")
        return kind(**known)

    return read


def _untagged(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Take the typed array's tag off `data`, which must be the one of the encoding."""
    encoding, data = values.get("encoding"), values.get("data")
    tag = data.tag if isinstance(data, CBORTag) else None
    expected = _TAGS.get(encoding) if type(encoding) is int else None
    if tag != expected:
        raise _refused(f"{where}.data", f"has tag {tag} where its encoding needs {expected}")
    return {**values, "data": data.value} if isinstance(data, CBORTag) else values


def _tuple_reader(reader: _Reader) -> _Reader:
    def read(values: object, where: str) -> tuple[Any, ...]:
        if not isinstance(values, list):
            raise _refused(where, "is not an array")
        return tuple(reader(value, f"{where}[{at}]") for at, value in enumerate(values))

    return read


def _constrained_reader(reader: _Reader, constraint: Range | Pattern) -> _Reader:
    def read(value: object, where: str) -> Any:
        known = reader(value, where)
        if not constraint.allows(known):
            raise _refused(where, f"is not {constraint}")
        return known

    return read


def _plain_reader(kind: type) -> _Reader:
    def read(value: object, where: str) -> Any:
        if type(value) is not kind:  # not isinstance: True is no integer here
            raise _refused(where, f"is not {kind.__name__}")
        if kind is float and not math.isfinite(value):  # type: ignore[arg-type]
            raise _refused(where, "is not finite")
        return value

    return read


def _refused(where: str, what: str) -> ProtocolError:
    return ProtocolError(f"{where} {what}", status=422)
