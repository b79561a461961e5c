# SPDX-License-Identifier: Apache-2.0
"""Models and differences of models as they go out, in memory while they are wanted."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Generic, TypeVar

from fedlearn.wire import codec, delta
from fedlearn.wire.messages import Difference
from fedlearn_aggregator import store
from fedlearn_aggregator.writer import Writer

K = TypeVar("K", bytes, tuple[bytes, bytes])

# The round's model, the one before it, and two that a straggler asks for.
MAX_MODELS = 4
# Devices that missed different numbers of rounds need different differences to one target.
MAX_DIFFERENCES = 32
# There is no difference that is smaller than the target. To know that is worth keeping, too.
_NOT_SMALLER = b""


class Shelf:
    """Bounded caches in front of the store."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._models = _Cache[bytes](MAX_MODELS)
        self._differences = _Cache[tuple[bytes, bytes]](MAX_DIFFERENCES)

    async def model(self, digest: bytes) -> bytes | None:
        """The bytes of a model; None if the store has none of that digest."""
        return await self._models.get(digest, lambda: self._writer.do(store.load_model, digest))

    async def difference(self, base: bytes, target: bytes, current: bytes) -> bytes | None:
        """The body of a `Difference`; None if there is none that is smaller than the target.

        Only the `current` model, which all devices want, is worth the work and the room.
        """
        if target != current:
            return None
        body = await self._differences.get((base, target), lambda: self._difference(base, target))
        return body or None

    async def _difference(self, base: bytes, target: bytes) -> bytes | None:
        old, new = await self.model(base), await self.model(target)
        if old is None or new is None:
            return None
        if len(old) != len(new):
            return _NOT_SMALLER
        encoding, data = await asyncio.to_thread(delta.encode_difference, old, new)
        body = codec.encode(Difference(base, target, encoding, data))
        return body if len(body) < len(new) else _NOT_SMALLER


class _Cache(Generic[K]):
    """The last used results. What is asked for at once is made once.

    Peers choose the keys, so only what exists takes a place: not None, and no failure.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[K, bytes] = OrderedDict()
        self._making: dict[K, asyncio.Task[bytes | None]] = {}

    async def get(
        self, key: K, make: Callable[[], Coroutine[None, None, bytes | None]]
    ) -> bytes | None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key not in self._making:
            self._making[key] = asyncio.create_task(make())
            self._making[key].add_done_callback(lambda task: self._made(key, task))
        # Others wait for it too, so one device that hangs up must not cancel it.
        return await asyncio.shield(self._making[key])

    def _made(self, key: K, task: asyncio.Task[bytes | None]) -> None:
        del self._making[key]
        if task.cancelled() or task.exception() is not None:
            return
        data = task.result()
        if data is not None:
            self._kept[key] = data
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)
