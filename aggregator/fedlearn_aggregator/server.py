# SPDX-License-Identifier: Apache-2.0
"""The HTTP side: routes, bodies, and the shape of every error."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from fedlearn.errors import FedlearnError, ProtocolError, StorageError
from fedlearn.text import clean
from fedlearn.version import VERSION
from fedlearn.wire import codec
from fedlearn.wire.messages import (
    NAME,
    CheckIn,
    Enrolment,
    Message,
    Pattern,
    Refusal,
    TaskDescriptor,
)
from fedlearn_aggregator import metrics, report
from fedlearn_aggregator.checkins import HOLD_S, CheckIns
from fedlearn_aggregator.coordinator import Coordinator
from fedlearn_aggregator.download import file_response, parse_digest
from fedlearn_aggregator.faults import Repeated
from fedlearn_aggregator.identity.access import Access
from fedlearn_aggregator.metrics import Traffic
from fedlearn_aggregator.patience import GRACE_S, KEEP_ALIVE_S, LEAST_RATE, LINGER_S, Patience
from fedlearn_aggregator.shelf import Shelf
from fedlearn_aggregator.writer import Writer

CBOR = "application/cbor"
# A name, a round and one sentence.
MAX_CHECK_IN_BYTES = 4096
# A certificate signing request and a token.
MAX_ENROLMENT_BYTES = 4096
# A full disk is for a person to mend.
RETRY_AFTER_S = 30

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log = logging.getLogger(__name__)


class Server:
    """The application of one task. `access` guards it; None lets everybody in, on loopback."""

    def __init__(
        self,
        coordinator: Coordinator,
        writer: Writer,
        rng: random.Random,
        *,
        access: Access | None = None,
        hold_s: float = HOLD_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._coordinator = coordinator
        self._writer = writer
        self._access = access
        self._shelf = Shelf(writer)
        self._traffic = Traffic()
        self._grace_s = grace_s
        self.patience = Patience()
        self._reporting = asyncio.Lock()
        self._faults = Repeated(_log)
        self.check_ins = CheckIns(coordinator, rng, hold_s=hold_s)

    def runner(self) -> web.AppRunner:
        """The application, ready for `setup` and a site."""
        app = web.Application(middlewares=[self._answer_errors])
        app.add_routes(
            [
                web.get("/v1/task", self._task),
                # Without HEAD: it would count as a download.
                web.get("/v1/models/{digest}", self._model, allow_head=False),
                web.put("/v1/devices/{device}/certificate", self._certify),
                web.post("/v1/checkin", self._check_in),
                web.put("/v1/rounds/{round}/updates/{device}", self._update),
                web.get("/v1/status", self._status),
                web.get("/healthz", self._health),
                web.get("/metrics", self._metrics),
            ]
        )
        return web.AppRunner(
            app,
            access_log=None,
            logger=_http_logger(),
            # A device that hung up must not take a seat.
            handler_cancellation=True,
            keepalive_timeout=KEEP_ALIVE_S,
            # The rest of a body that was refused is thrown away for so long.
            lingering_time=LINGER_S,
            # Bodies are counted as they come; nobody may send one that grows here.
            auto_decompress=False,
            # Held check-ins are released by `stop`; whoever is still busy then gets a moment.
            shutdown_timeout=1.0,
        )

    def stop(self) -> None:
        """Release all held check-ins, so that the runner's cleanup has nothing to wait for."""
        self.check_ins.stop()

    def _require_device(self, request: web.Request, device: str | None = None) -> None:
        if self._access is not None:
            self._access.require_device(request, device)

    def _require_viewer(self, request: web.Request) -> None:
        if self._access is not None:
            self._access.require_viewer(request)

    async def _task(self, request: web.Request) -> web.Response:
        self._require_device(request)
        coordinator = self._coordinator
        task = coordinator.task
        return _cbor(
            TaskDescriptor(
                task=task.name,
                round=coordinator.round.number,
                state="finished" if coordinator.finished else coordinator.round.state,
                model=coordinator.model.digest,
                model_bytes=len(coordinator.model.data),
                cohort=task.policy.cohort,
                tensors=task.tensors,
                plan=task.plan,
                limits=task.limits,
            )
        )

    async def _model(self, request: web.Request) -> web.Response:
        self._require_device(request)
        digest = parse_digest(request.match_info["digest"])
        base = request.query.get("from")
        if base is not None:
            current = self._coordinator.model.digest
            difference = await self._shelf.difference(parse_digest(base), digest, current)
            if difference is not None:
                self._coordinator.count_download(digest, len(difference))
                return web.Response(body=difference, content_type=CBOR)
        data = await self._shelf.model(digest)
        if data is None:
            raise ProtocolError("this model is not here", status=404, hint="check in again")
        response = file_response(request, data, digest)
        if response.status == HTTPStatus.OK:
            self._coordinator.count_download(digest, len(data))
        return response

    async def _certify(self, request: web.Request) -> web.Response:
        device = request.match_info["device"]
        if self._access is None:
            raise ProtocolError("this aggregator has no identity", status=404)
        if not Pattern(NAME).allows(device):
            raise ProtocolError("this is no name of a device", status=422)
        body = await self._body(request, MAX_ENROLMENT_BYTES)
        enrolment = codec.decode(Enrolment, body, max_bytes=MAX_ENROLMENT_BYTES)
        certificate = await self._access.certify(request, device, enrolment)
        renewed = "enrolled" if enrolment.token is not None else "has a new certificate"
        _log.info("%s %s", device, renewed)
        return _cbor(certificate, HTTPStatus.CREATED)

    async def _check_in(self, request: web.Request) -> web.Response:
        self._require_device(request)  # before its body is read
        body = await self._body(request, MAX_CHECK_IN_BYTES)
        check_in = codec.decode(CheckIn, body, max_bytes=MAX_CHECK_IN_BYTES)
        self._require_device(request, check_in.device)
        return _cbor(await self.check_ins.answer(check_in))

    async def _update(self, request: web.Request) -> web.Response:
        number, device = request.match_info["round"], request.match_info["device"]
        self._require_device(request, device)
        # SQLite counts in 63 bits; a longer number can be no round.
        if not number.isascii() or not number.isdecimal() or len(number) > 18:
            raise ProtocolError("this is no number of a round", status=404)
        limits = self._coordinator.task.limits
        body = await self._body(request, limits.update_bytes)
        receipt = await self._coordinator.submit(int(number), device, body)
        status = HTTPStatus.OK if receipt.duplicate else HTTPStatus.CREATED
        return _cbor(receipt, status)

    async def _status(self, request: web.Request) -> web.Response:
        self._require_viewer(request)
        held = {"held_checkins": self.check_ins.held, "version": VERSION}

        def page() -> bytes:
            task = report.read(self._writer.path, report.STATUS_ROUNDS)
            return json.dumps({**task.to_json(), **held}).encode()

        # One at a time, on a thread with a connection of its own: whoever asks often waits for
        # himself, and no acknowledgement waits for him.
        async with self._reporting:
            body = await asyncio.to_thread(page)
        return web.Response(body=body, content_type="application/json")

    async def _health(self, _request: web.Request) -> web.Response:
        failure = self._writer.failure
        trouble = str(failure) if failure else self._coordinator.trouble
        if trouble:
            return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text=clean(trouble))
        return web.Response(text="ok")

    async def _metrics(self, request: web.Request) -> web.Response:
        self._require_viewer(request)
        page = metrics.render(self._coordinator, self.check_ins, self._traffic, self.patience)
        return web.Response(body=page.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _body(self, request: web.Request, limit: int) -> bytes:
        """Read a CBOR body of at most `limit` bytes, counting them as they come."""
        if request.content_type != CBOR or "Content-Encoding" in request.headers:
            raise ProtocolError("the body must be plain application/cbor", status=415)
        too_large = ProtocolError(f"the body is larger than {limit} bytes", status=413)
        if (request.content_length or 0) > limit:
            raise too_large
        body = bytearray()
        now_s = asyncio.get_running_loop().time
        # Each spell brings so many bytes: a burst buys no silence afterwards.
        enough = LEAST_RATE * self._grace_s
        try:
            async with asyncio.timeout_at(now_s() + self._grace_s) as spell:
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
                    if len(body) >= enough:
                        enough = len(body) + LEAST_RATE * self._grace_s
                        spell.reschedule(now_s() + self._grace_s)
        except TimeoutError as error:
            raise ProtocolError("the body comes too slowly", status=408) from error
        self._traffic.body_bytes_in += len(body)
        return bytes(body)

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Every failure becomes a Refusal; only those of our own keep a traceback, in the log."""
        # It is gone when the answer is there and the peer has left.
        transport, why = request.transport, ""
        self.patience.handling(transport)
        try:
            response = await handler(request)
        except ProtocolError as error:
            response, why = _refusal(error.status, error.message, error.hint), error.message
        except StorageError as error:
            response = _refusal(507, "the aggregator cannot write", "send it again later")
            response.headers["Retry-After"] = str(RETRY_AFTER_S)
            self._faults.error(str(error), asyncio.get_running_loop().time())
        except FedlearnError as error:
            _log.error("%s", error)
            response = _refusal(500, "the aggregator failed", "its log says why")
        except web.HTTPException as error:
            response = _refusal(error.status, error.reason, "")
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except Exception:
            _log.exception("%s %s failed", request.method, clean(request.path))
            response = _refusal(500, "the aggregator failed", "its log says why")
        if response.status >= HTTPStatus.BAD_REQUEST:
            if not request.content.is_eof():
                # The rest of a refused body is thrown away, and the connection with it.
                response.force_close()
            _log.info(
                "%s %s from %s: %d %s",
                request.method,
                clean(request.path),
                request.remote,
                response.status,
                clean(why),
            )
        self.patience.handled(transport)
        route = request.match_info.route.resource
        name = route.canonical if route else "unknown"
        self._traffic.responses[name, str(response.status)] += 1
        self._traffic.body_bytes_out += response.content_length or 0
        return response


class _PeersFault(logging.Filter):
    """Makes one line of what aiohttp logs about malformed HTTP: an error with a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            record.msg, record.args = "malformed HTTP: %s", (clean(error.message),)
            record.exc_info = None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


def _http_logger() -> logging.Logger:
    logger = logging.getLogger("fedlearn_aggregator.http")
    if not logger.filters:
        logger.addFilter(_PeersFault())
    return logger


def _cbor(message: Message, status: int = HTTPStatus.OK) -> web.Response:
    return web.Response(body=codec.encode(message), status=status, content_type=CBOR)


def _refusal(status: int, error: str, hint: str) -> web.Response:
    # It may quote the request, and is shown on the terminal of whoever sent that, or another.
    return _cbor(Refusal(clean(error), clean(hint)), status)
