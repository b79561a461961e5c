# SPDX-License-Identifier: Apache-2.0
"""A model as an HTTP download: immutable, named by its digest, resumable (RFC 9110, section 14)."""

from __future__ import annotations

import re
from http import HTTPStatus

from aiohttp import web

from fedlearn.errors import ProtocolError
from fedlearn.wire import codec
from fedlearn.wire.messages import Refusal

_DIGEST = re.compile(r"[0-9a-f]{64}")
# One range only; a request for several may be answered with the whole file.
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")


def parse_digest(text: str) -> bytes:
    """SHA-256 in lower-case hexadecimal; ProtocolError 404 otherwise."""
    if not _DIGEST.fullmatch(text):
        raise ProtocolError(
            "a model is named by 64 hexadecimal digits", status=404, hint="/v1/task names it"
        )
    return bytes.fromhex(text)


def file_response(request: web.Request, data: bytes, digest: bytes) -> web.Response:
    """The answer to a request for `data`: 200, 206, 304 or 416."""
    etag = f'"{digest.hex()}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "public, max-age=31536000, immutable",
    }
    if etag in request.headers.get("If-None-Match", ""):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    headers["Content-Type"] = "application/octet-stream"
    # A range of another version of the file would not fit what the device has.
    wanted = request.headers.get("Range", "")
    if request.headers.get("If-Range", etag) != etag:
        wanted = ""
    match = _RANGE.fullmatch(wanted)
    if match is None:
        return web.Response(body=data, headers=headers)
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(len(data) - int(suffix), 0), len(data)
    else:
        start = int(first)
        end = min(int(last) + 1, len(data)) if last else len(data)
        if last and int(last) < start:
            return web.Response(body=data, headers=headers)  # no valid range: ignored
    if start >= end:
        headers["Content-Range"] = f"bytes */{len(data)}"
        headers["Content-Type"] = "application/cbor"
        return web.Response(
            status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            body=codec.encode(Refusal("the range lies behind the end of the model", "")),
            headers=headers,
        )
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return web.Response(status=HTTPStatus.PARTIAL_CONTENT, body=data[start:end], headers=headers)
