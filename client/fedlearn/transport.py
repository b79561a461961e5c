# SPDX-License-Identifier: Apache-2.0
"""The requests of the protocol, from the device's side."""

from __future__ import annotations

from enum import Enum, auto
from http import HTTPStatus
from typing import NoReturn

from fedlearn import codec
from fedlearn.connection import Connection
from fedlearn.errors import NetworkError, ProtocolError
from fedlearn.log import clean
from fedlearn.messages import CheckIn, Receipt, Refusal, TrainOrder, Wait

REPLY_TIMEOUT_S = 30.0
# The aggregator holds a check-in for 25 s; the rest is for a network with hiccups.
LONG_POLL_TIMEOUT_S = 60.0
# An order names at most some thousand tensors; all other answers are smaller.
MAX_REPLY_BYTES = 64 * 1024
_CBOR = {"Content-Type": "application/cbor", "Accept": "application/cbor"}
_ROUND_OVER = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE)


class Delivery(Enum):
    """What became of an update."""

    STORED = auto()
    ROUND_OVER = auto()  # it came too late, or another update of this device is there


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

    Raises `ProtocolError` when the update is refused for good, and `NetworkError` when another
    try makes sense.
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
        refuse(reply.status, reply.body)
    try:
        receipt = codec.decode(Receipt, reply.body, max_bytes=MAX_REPLY_BYTES)
    except ProtocolError as error:
        raise NetworkError(f"the receipt cannot be read: {error}") from error
    if receipt.round != round_number:
        raise NetworkError(f"the receipt is for round {receipt.round}, not {round_number}")
    return Delivery.STORED


def refuse(status: int, body: bytes) -> NoReturn:
    """Raise what an answer other than success says.

    A status below 500 finds fault with the request: `ProtocolError`. Others pass: `NetworkError`.
    """
    try:
        refusal = codec.decode(Refusal, body, max_bytes=MAX_REPLY_BYTES)
    except ProtocolError:
        refusal = Refusal("no reason given", "")
    message = f"the aggregator answers {status}: {clean(refusal.error)}"
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        raise ProtocolError(message, status=status, hint=clean(refusal.hint))
    raise NetworkError(message, hint=clean(refusal.hint))
