# SPDX-License-Identifier: Apache-2.0
"""Getting a model: a difference when that is smaller, else the file, resumed where it broke off."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import time
from dataclasses import dataclass
from pathlib import Path

from fedlearn.agent.connection import CHUNK_BYTES, Connection, read_body
from fedlearn.agent.state import Models
from fedlearn.agent.transport import REPLY_TIMEOUT_S, refuse
from fedlearn.durable import publish, storage_errors
from fedlearn.errors import NetworkError, ProtocolError
from fedlearn.wire.messages import MAX_MODEL_BYTES


@dataclass(frozen=True, slots=True)
class Download:
    """What came: `difference` is the CBOR body to rebuild the model from; None: it is on disk."""

    body_bytes: int
    difference: bytes | None = None


def download_model(
    connection: Connection,
    models: Models,
    digest: bytes,
    size: int,
    *,
    base: bytes | None = None,
    deadline: float,
) -> Download:
    """Get the model with this SHA-256 and `size` in bytes, by `deadline` of `time.monotonic()`.

    Raises `ProtocolError` when the bytes are not those of the model, `StorageError`, and what
    `Connection.open` raises. What has arrived by then stays for the next call.
    """
    if size > MAX_MODEL_BYTES:
        raise ProtocolError(f"a model of {size} bytes is ordered, more than {MAX_MODEL_BYTES}")
    models.drop_partials(digest)
    partial = models.partial(digest)
    with storage_errors("read", partial):
        have = partial.stat().st_size if partial.exists() else 0
    name, query, headers = digest.hex(), "", {}
    if have:
        # The name is the content's digest, and the aggregator makes it the entity tag, too.
        headers = {"Range": f"bytes={have}-", "If-Range": f'"{name}"'}
    elif base is not None:
        query = f"?from={base.hex()}"
    received = 0
    if have < size:
        path = f"/v1/models/{name}{query}"
        with connection.open("GET", path, headers=headers, timeout_s=REPLY_TIMEOUT_S) as response:
            if response.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                _discard(partial)
            if response.status not in (http.client.OK, http.client.PARTIAL_CONTENT):
                refuse(response.status, read_body(response, CHUNK_BYTES, REPLY_TIMEOUT_S))
            if response.getheader("Content-Type") == "application/cbor":
                body = read_body(response, size, REPLY_TIMEOUT_S)
                return Download(len(body), body)
            if response.status == http.client.OK:
                have = 0
            elif not (response.getheader("Content-Range") or "").startswith(f"bytes {have}-"):
                raise ProtocolError("the answer is not the range of the model that was asked for")
            received = _collect(response, partial, have, size, deadline)
    _verify(partial, digest)
    with storage_errors("write", partial):
        publish(partial, models.file(digest))
    return Download(received)


def _collect(
    response: http.client.HTTPResponse, partial: Path, have: int, size: int, deadline: float
) -> int:
    """Append the answer to the file, and sync it; return the bytes that came."""
    received = 0
    with storage_errors("write", partial):
        stream = partial.open("ab" if have else "wb")
    try:
        # The two kinds of OSError are kept apart: only the stream's are the disk's.
        while chunk := response.read1(CHUNK_BYTES):
            received += len(chunk)
            if have + received > size:
                break
            with storage_errors("write", partial):
                stream.write(chunk)
            if time.monotonic() > deadline:
                raise NetworkError("the model did not arrive before the round's deadline")
        with storage_errors("write", partial):
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        # What could not be written would fail again here, and hide the first failure.
        with contextlib.suppress(OSError):
            stream.close()
    if have + received > size:
        _discard(partial)
        raise ProtocolError(f"the model has more than the {size} bytes of the order", status=413)
    if have + received < size:
        raise ConnectionResetError
    return received


def _verify(partial: Path, digest: bytes) -> None:
    with storage_errors("read", partial), partial.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").digest()
    if found != digest:
        _discard(partial)
        raise ProtocolError("the model that arrived has another SHA-256 than the order's")


def _discard(partial: Path) -> None:
    with storage_errors("delete", partial):
        partial.unlink(missing_ok=True)
