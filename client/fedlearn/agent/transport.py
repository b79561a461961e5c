# SPDX-License-Identifier: Apache-2.0
"""The requests of the protocol, from the device's side."""

from __future__ import annotations

from enum import Enum, auto
from http import HTTPStatus
from typing import NoReturn

from fedlearn.agent.connection import Connection
from fedlearn.errors import NetworkError, ProtocolError
from fedlearn.log import clean
from fedlearn.wire import codec
from fedlearn.wire.messages import CheckIn, Receipt, Refusal, TrainOrder, Wait

REPLY_TIMEOUT_S = 30.0
# The aggregator holds a check-in for 25 s; the rest is for a network with hiccups.
LONG_POLL_TIMEOUT_S = 60.0
# An order names at most some thousand tensors; all other answers are smaller.
MAX_REPLY_BYTES = 64 * 1024
_CBOR = {"Content-Type": "application/cbor", "Accept": "application/cbor"}
_ROUND_OVER = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE)
# The same update would be refused again. Whatever else fails may be different at the next try.
_REFUSED_FOR_GOOD = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)


class Delivery(Enum):
    """What became of an update."""

    STORED = auto()
    ROUND_OVER = auto()  # it came too late, or another update of this device is there


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


def send_update(connection: Connection, round_number: int, device: str, body: bytes) -> Delivery:
    """Deliver an update's body; it may be repeated until the aggregator has acknowledged it.

    Raises `RefusedError` when the update is refused for good; after anything else another try
    makes sense.
    """
    reply = connection.request(
        "PUT",
        f"/v1/rounds/{round_number}/updates/{device}",
        body=body,
        headers=_CBOR,
        timeout_s=REPLY_TIMEOUT_S,
        max_bytes=MAX_REPLY_BYTES,
    )
    if reply.status in _ROUND_OVER:
        return Delivery.ROUND_OVER
    if reply.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
        try:
            refuse(reply.status, reply.body)
        except RefusedError as error:
            if error.status in _REFUSED_FOR_GOOD:
                raise
            raise NetworkError(error.message, hint=error.hint) from error
    receipt = codec.decode(Receipt, reply.body, max_bytes=MAX_REPLY_BYTES)
    if receipt.round != round_number:
        raise NetworkError(f"the receipt is for round {receipt.round}, not {round_number}")
    return Delivery.STORED


def refuse(status: int, body: bytes) -> NoReturn:
    """Raise what an answer other than success says.

    4xx finds fault with the request: `RefusedError`. 5xx passes: `NetworkError`. All others are
    no answers of this protocol: `ProtocolError`.
    """
    try:
        refusal = codec.decode(Refusal, body, max_bytes=MAX_REPLY_BYTES)
    except ProtocolError:
        refusal = Refusal("no reason given", "")
    message = f"the aggregator answers {status}: {clean(refusal.error)}"
    hint = clean(refusal.hint)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise NetworkError(message, hint=hint)
    if status >= HTTPStatus.BAD_REQUEST:
        raise RefusedError(message, status=status, hint=hint)
    raise ProtocolError(message)
