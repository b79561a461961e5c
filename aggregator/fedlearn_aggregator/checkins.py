# SPDX-License-Identifier: Apache-2.0
"""Check-ins: who asks for work gets a seat, or is held until there may be one.

A held device costs one open connection and no traffic. When a round opens all held devices are
tried at once in the order in which they began to wait, until the seats are gone.
"""

from __future__ import annotations

import asyncio
import logging
import random

from fedlearn.errors import ProtocolError
from fedlearn.text import clean
from fedlearn.wire.messages import CheckIn, TrainOrder, Wait
from fedlearn_aggregator.coordinator import Coordinator
from fedlearn_aggregator.rounds import Seating

# Below the 30 s after which home routers and proxies may drop a silent connection.
HOLD_S = 25.0
# Two thousand boards, twice over. Beyond that devices are sent away for a while.
MAX_HELD = 4096
# A fleet that was answered at one moment comes back over this span.
JITTER_S = 2.0
# A finished task is only asked about in case somebody starts another one.
FINISHED_RETRY_S = 300.0
# Nobody waits longer than this without asking: the round may have been abandoned, or the
# aggregator moved.
MAX_RETRY_S = 3600.0

_REASONS = {
    Seating.DELIVERED: "this round has your update",
    Seating.FAILED: "you gave your seat in this round back",
    Seating.FULL: "this round has no free seat",
    Seating.EARLY: "the next round opens later",
    Seating.OVER: "this round takes no more updates",
}

_log = logging.getLogger(__name__)


class CheckIns:
    """Answers check-ins of one task."""

    def __init__(
        self, coordinator: Coordinator, rng: random.Random, *, hold_s: float = HOLD_S
    ) -> None:
        """`rng` spreads the devices' return; it is no secret."""
        self._coordinator = coordinator
        self._rng = rng
        self._hold_s = hold_s
        self._stopping = asyncio.Event()
        self.held = 0

    async def answer(self, check_in: CheckIn) -> TrainOrder | Wait:
        """The order, as soon as there is one, or a Wait after `hold_s` seconds."""
        coordinator = self._coordinator
        if check_in.task != coordinator.task.name:
            raise ProtocolError(
                f"there is no task '{check_in.task}' here",
                status=404,
                hint=f"this aggregator runs '{coordinator.task.name}'",
            )
        if check_in.failure is not None:
            reason = clean(check_in.failure.reason)
            _log.warning("%s failed: %s", check_in.device, reason)
            await coordinator.give_back(check_in.device, check_in.failure.round)
            return self._wait(self._hold_s, _REASONS[Seating.FAILED])
        now_s = asyncio.get_running_loop().time()
        if self.held >= MAX_HELD:
            return self._wait(self._hold_s, "too many devices are waiting", self._hold_s)
        self.held += 1
        try:
            return await self._hold(check_in.device, now_s + self._hold_s)
        finally:
            self.held -= 1

    def stop(self) -> None:
        """Send all held devices away; they come back to whoever runs next."""
        self._stopping.set()
        self._coordinator.announce_seats()

    async def _hold(self, device: str, until_s: float) -> TrainOrder | Wait:
        coordinator = self._coordinator
        while True:
            if self._stopping.is_set():
                return self._wait(1.0, "the aggregator is stopping")
            if coordinator.finished:
                return self._wait(FINISHED_RETRY_S, "the task is finished", FINISHED_RETRY_S)
            changed = coordinator.seats_changed
            seating, order = await coordinator.take_seat(device)
            if order is not None:
                return order
            opens_s = coordinator.round.opens_s
            if seating is Seating.EARLY and opens_s > until_s:
                early_s = opens_s - asyncio.get_running_loop().time()
                return self._wait(min(early_s, MAX_RETRY_S), _REASONS[seating])
            try:
                async with asyncio.timeout_at(until_s):
                    await changed.wait()
            except TimeoutError:
                return self._wait(0.0, _REASONS[seating])

    def _wait(self, least_s: float, reason: str, jitter_s: float = JITTER_S) -> Wait:
        return Wait(least_s + self._rng.uniform(0.0, jitter_s), reason)
