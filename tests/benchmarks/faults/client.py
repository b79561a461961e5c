# SPDX-License-Identifier: Apache-2.0
"""A light device: one connection, made-up updates, thousands of them in one process."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import numpy as np

from fedlearn.model import Model
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.wire import codec, delta
from fedlearn.wire.messages import CheckIn, EncodedTensor, TrainOrder, Update, Wait
from tests.aggregator.devices import MAX_BYTES, METRICS, TASK, start_model

CBOR = b"Content-Type: application/cbor\r\n"


class Bodies:
    """Updates of the whole digits network of about 9 kB, all with the same deltas.

    The task must not move its model, see `STILL`.
    """

    def __init__(self, model: Model | None = None, share: float = 0.3) -> None:
        model = model or start_model()
        rng = np.random.default_rng(1)
        tensors = []
        for tensor in trainable_tensors(model, "all"):
            old = model.array(tensor.index).astype(np.int64)
            # Towards zero, so that every weight stays within int8.
            step = np.where(rng.random(old.shape) < share, -np.sign(old), 0)
            encoding, data = delta.encode_delta(step)
            tensors.append(EncodedTensor(tensor.index, encoding, data))
        self._tensors = tuple(tensors)

    def update(self, order: TrainOrder, device: str, samples: int = 400) -> bytes:
        """The body of the device's update."""
        return codec.encode(
            Update(TASK, order.round, order.model, device, samples, METRICS, self._tensors)
        )


# Of `fedlearn-aggregator init`: the master weights move by less than half a step in a lifetime.
STILL = ("--tail", "all", "--fixed-scales", "--server-learning-rate", "1e-9")


class Light:
    """The device called `name`."""

    def __init__(self, port: int, name: str) -> None:
        self.name = name
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body. Raises OSError or EOFError when the connection breaks."""
        if self._writer is None or self._reader is None:
            opened = await asyncio.open_connection("127.0.0.1", self._port)
            self._reader, self._writer = opened
        lines = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        self._writer.write(lines.encode() + CBOR + b"\r\n" + body)
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            fields = head.lower()
            at = fields.index(b"content-length:")
            length = int(fields[at + 15 : fields.index(b"\r\n", at)])
            reply = await self._reader.readexactly(length)
        except BaseException:
            self.close()
            raise
        if b"connection: close" in fields:
            self.close()
        return int(head[9:12]), reply

    async def post_raw(self, method: str, path: str, body: bytes, *, chunked: bool) -> int:
        """Send any body, in chunks if asked to; the status. An answer may come before its end."""
        if not chunked:
            return (await self.request(method, path, body))[0]
        self.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode())
            writer.write(CBOR + b"Transfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 1000):
                part = body[at : at + 1000]
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            writer.write(b"0\r\n\r\n")
            return int((await reader.readuntil(b"\r\n"))[9:12])
        finally:
            writer.transport.abort()

    async def check_in(self) -> TrainOrder | Wait:
        """Ask for work."""
        body = codec.encode(CheckIn(TASK, self.name))
        status, reply = await self.request("POST", "/v1/checkin", body)
        assert status == 200, reply
        return codec.decode((TrainOrder, Wait), reply, max_bytes=MAX_BYTES)

    async def order(self) -> TrainOrder | None:
        """Ask until there is work; None when the task is finished."""
        while True:
            answer = await self.check_in()
            if isinstance(answer, TrainOrder):
                return answer
            if "finished" in answer.reason:
                return None
            await asyncio.sleep(min(answer.retry_s, 2.0))

    async def send(self, order: TrainOrder, body: bytes) -> int:
        """Deliver; the status."""
        path = f"/v1/rounds/{order.round}/updates/{self.name}"
        return (await self.request("PUT", path, body))[0]

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.transport.abort()
        self._reader = self._writer = None
