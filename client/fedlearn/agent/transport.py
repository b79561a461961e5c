# SPDX-License-Identifier: Apache-2.0
"""The requests of the protocol, from the device's side."""

from __future__ import annotations

from enum import Enum, auto
from http import HTTPStatus
from typing import NoReturn

from fedlearn.agent.connection import Connection
from fedlearn.errors import NetworkError, ProtocolError, UnrecognisedError
from fedlearn.text import clean
from fedlearn.wire import codec
from fedlearn.wire.messages import (
    Certificate,
    CheckIn,
    Enrolment,
    Receipt,
    Refusal,
    TaskDescriptor,
    TrainOrder,
    Wait,
)

REPLY_TIMEOUT_S = 30.0
# The aggregator holds a check-in for 25 s; the rest is for a network with hiccups.
LONG_POLL_TIMEOUT_S = 60.0
# An order names at most some thousand tensors; all other answers are smaller.
MAX_REPLY_BYTES = 64 * 1024
# A task describes each of its tensors, in some hundred bytes.
MAX_TASK_BYTES = 1024 * 1024
_CBOR = {"Content-Type": "application/cbor", "Accept": "application/cbor"}
# The same update would be refused again. Whatever else fails may be different at the next try.
_REFUSED_FOR_GOOD = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)


class Delivery(Enum):
    """What became of an update."""

    STORED = auto()
    ROUND_OVER = auto()  # it came too late
    CONFLICT = auto()  # another update under this device's name is there
    NOT_BEGUN = auto()  # the aggregator does not know the round yet: its disk was restored


_LOST = {
    HTTPStatus.CONFLICT: Delivery.CONFLICT,
    HTTPStatus.GONE: Delivery.ROUND_OVER,
    HTTPStatus.NOT_FOUND: Delivery.NOT_BEGUN,
}


class RefusedError(ProtocolError):
    """The aggregator understood the request and says no."""


def check_in(
    connection: Connection, message: CheckIn, timeout_s: float = LONG_POLL_TIMEOUT_S
) -> TrainOrder | Wait:
    """Ask for work. The aggregator may hold the answer back while there is none."""
    reply = connection.request(
        "POST",
        "/v1/checkin",
        body=codec.encode(message),
        headers=_CBOR,
        timeout_s=timeout_s,
        max_bytes=MAX_REPLY_BYTES,
    )
    if reply.status != HTTPStatus.OK:
        refuse(reply.status, reply.body)
    return codec.decode((TrainOrder, Wait), reply.body, max_bytes=MAX_REPLY_BYTES)


def enrol(connection: Connection, device: str, enrolment: Enrolment) -> bytes:
    """Ask for a certificate, or for the next one; return it as PEM."""
    reply = connection.request(
        "PUT",
        f"/v1/devices/{device}/certificate",
        body=codec.encode(enrolment),
        headers=_CBOR,
        timeout_s=REPLY_TIMEOUT_S,
        max_bytes=MAX_REPLY_BYTES,
    )
    if reply.status != HTTPStatus.CREATED:
        refuse(reply.status, reply.body)
    return codec.decode(Certificate, reply.body, max_bytes=MAX_REPLY_BYTES).certificate


def confirm_task(connection: Connection, task: str) -> None:
    """Raise `NetworkError` or `ProtocolError` unless an aggregator of the task answers here."""
    reply = connection.request(
        "GET",
        "/v1/task",
        headers=_CBOR,
        timeout_s=REPLY_TIMEOUT_S,
        max_bytes=MAX_TASK_BYTES,
    )
    if reply.status != HTTPStatus.OK:
        refuse(reply.status, reply.body)
    found = codec.decode(TaskDescriptor, reply.body, max_bytes=MAX_TASK_BYTES)
    if found.task != task:
        raise NetworkError(
            f"{connection.endpoint} is the aggregator of task {found.task}, not of {task}"
        )


def send_update(
    connection: Connection, task: str, round_number: int, device: str, body: bytes
) -> Delivery:
    """Deliver an update's body; it may be repeated until the aggregator has acknowledged it.

    Raises `RefusedError` when the update is refused for good; after any other error another try
    makes sense. What would cost the device its update counts only from an aggregator of the task:
    the address may be somebody else's by now.
    """
    reply = connection.request(
        "PUT",
        f"/v1/rounds/{round_number}/updates/{device}",
        body=body,
        headers=_CBOR,
        timeout_s=REPLY_TIMEOUT_S,
        max_bytes=MAX_REPLY_BYTES,
    )
    if reply.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
        try:
            refuse(reply.status, reply.body)
        except RefusedError as error:
            return _judge(error, connection, task)
    receipt = codec.decode(Receipt, reply.body, max_bytes=MAX_REPLY_BYTES)
    if receipt.round != round_number:
        raise NetworkError(f"the receipt is for round {receipt.round}, not {round_number}")
    return Delivery.STORED


def _judge(error: RefusedError, connection: Connection, task: str) -> Delivery:
    """What a refusal means for the update; raises what `send_update` says."""
    if error.status not in _LOST and error.status not in _REFUSED_FOR_GOOD:
        raise NetworkError(error.message, hint=error.hint) from error
    confirm_task(connection, task)
    if error.status in _REFUSED_FOR_GOOD:
        raise error
    return _LOST[HTTPStatus(error.status)]


def refuse(status: int, body: bytes) -> NoReturn:
    """Raise what an answer other than success says.

    401 does not know this device: `UnrecognisedError`. Another 4xx with a `Refusal` finds fault
    with the request: `RefusedError`. 5xx passes, and a 4xx without one comes from a proxy or some
    other server: `NetworkError`. All others are no answers of this protocol: `ProtocolError`.
    """
    try:
        refusal = codec.decode(Refusal, body, max_bytes=MAX_REPLY_BYTES)
    except ProtocolError:
        if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise NetworkError(
                f"what answers {status} is no aggregator",
                hint="does something else listen there, or a proxy stand between?",
            ) from None
        refusal = Refusal("no reason given", "")
    message = f"the aggregator answers {status}: {clean(refusal.error)}"
    hint = clean(refusal.hint)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise NetworkError(message, hint=hint)
    if status == HTTPStatus.UNAUTHORIZED:
        raise UnrecognisedError(message, hint=hint)
    if status >= HTTPStatus.BAD_REQUEST:
        raise RefusedError(message, status=status, hint=hint)
    raise ProtocolError(message)
