# SPDX-License-Identifier: Apache-2.0
"""Models and differences of models as they go out, in memory while they are wanted."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TypeVar

from fedlearn.errors import FedlearnError
from fedlearn.wire import codec, delta
from fedlearn.wire.messages import Difference
from fedlearn_aggregator import store
from fedlearn_aggregator.writer import Writer

K = TypeVar("K", bytes, tuple[bytes, bytes])

# The round's model, the one before it, and two that a straggler asks for.
MAX_MODELS = 4
# Devices that missed different numbers of rounds need different differences to one target.
MAX_DIFFERENCES = 32


class Shelf:
    """Bounded caches in front of the store. What is asked for at once is made once."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._models: OrderedDict[bytes, asyncio.Task[bytes | None]] = OrderedDict()
        self._differences: OrderedDict[tuple[bytes, bytes], asyncio.Task[bytes | None]] = (
            OrderedDict()
        )

    async def model(self, digest: bytes) -> bytes | None:
        """The bytes of a model; None if the store has none of that digest."""
        if digest not in self._models:
            self._models[digest] = asyncio.create_task(self._writer.do(store.load_model, digest))
        data = await _cached(self._models, digest, MAX_MODELS)
        if data is None:
            self._models.pop(digest, None)  # it may be there another time
        return data

    async def difference(self, base: bytes, target: bytes) -> bytes | None:
        """The body of a `Difference`; None if there is none that is smaller than the target."""
        key = (base, target)
        if key not in self._differences:
            self._differences[key] = asyncio.create_task(self._difference(base, target))
        return await _cached(self._differences, key, MAX_DIFFERENCES)

    async def _difference(self, base: bytes, target: bytes) -> bytes | None:
        old, new = await self.model(base), await self.model(target)
        if old is None or new is None or len(old) != len(new):
            return None
        encoding, data = await asyncio.to_thread(delta.encode_difference, old, new)
        body = codec.encode(Difference(base, target, encoding, data))
        return body if len(body) < len(new) else None


async def _cached(
    tasks: OrderedDict[K, asyncio.Task[bytes | None]], key: K, limit: int
) -> bytes | None:
    """The task's result, which stays while it is among the `limit` last used; a failure does not.

    Others wait for it too, so one device that hangs up must not cancel it.
    """
    task = tasks[key]
    tasks.move_to_end(key)
    while len(tasks) > limit:
        tasks.popitem(last=False)
    try:
        return await asyncio.shield(task)
    except FedlearnError:
        tasks.pop(key, None)
        raise
