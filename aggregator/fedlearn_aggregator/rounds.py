# SPDX-License-Identifier: Apache-2.0
"""The state machine of a round: no clock, no randomness, no input or output.

    stateDiagram-v2
        [*] --> open
        open --> training: first seat given
        training --> aggregating: cohort of updates stored
        training --> aggregating: deadline with the minimum of updates
        training --> abandoned: deadline with too few updates
        aggregating --> closed: next model stored
        closed --> [*]
        abandoned --> [*]

A round has more seats than it needs updates (over-selection), so that a device that drops out does
not delay the others. Whoever takes a seat starts to train at once. An update is first reserved,
then written to disk by the caller, then stored: only stored updates count towards the cohort, and
reservations never exceed it, so exactly the updates that were acknowledged are aggregated, also
after a crash between any two of these steps.

Times are monotonic seconds that the caller passes in. A deadline is counted from the first seat,
and anew after a restart, because a monotonic clock says nothing about the time in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fedlearn.errors import ConfigError

# Bounds the exact sums of `aggregation`, and is far above what one LAN's aggregator serves.
MAX_COHORT = 1024
MAX_OVER_SELECTION = 10.0


class State(StrEnum):
    """States of a round; the last two are final."""

    OPEN = "open"
    TRAINING = "training"
    AGGREGATING = "aggregating"
    CLOSED = "closed"
    ABANDONED = "abandoned"


class Event(StrEnum):
    """What moves a round on."""

    SEATED = "first seat given"
    ENOUGH = "cohort of updates stored"
    DUE = "deadline with the minimum of updates"
    TOO_FEW = "deadline with too few updates"
    MODEL_STORED = "next model stored"


TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.OPEN, Event.SEATED): State.TRAINING,
    (State.TRAINING, Event.ENOUGH): State.AGGREGATING,
    (State.TRAINING, Event.DUE): State.AGGREGATING,
    (State.TRAINING, Event.TOO_FEW): State.ABANDONED,
    (State.AGGREGATING, Event.MODEL_STORED): State.CLOSED,
}
FINAL = frozenset({State.CLOSED, State.ABANDONED})


def mermaid() -> str:
    """The table as a Mermaid state diagram."""
    arrows = [f"    [*] --> {State.OPEN}"]
    arrows += [f"    {state} --> {to}: {event}" for (state, event), to in TRANSITIONS.items()]
    arrows += [f"    {state} --> [*]" for state in State if state in FINAL]
    return "\n".join(["stateDiagram-v2", *arrows]) + "\n"


class Seating(StrEnum):
    """Answer to a device that asks for a seat."""

    GIVEN = "given"
    HELD = "held"  # it has this seat already: it was restarted
    DELIVERED = "delivered"  # its update is here: it waits for the next round
    FAILED = "failed"  # it gave its seat back: it waits for the next round
    FULL = "full"
    EARLY = "early"  # the round opens later
    OVER = "over"  # no more updates are taken


class Verdict(StrEnum):
    """What becomes of an update."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"  # these very bytes are stored
    CONFLICT = "conflict"  # other bytes of this device are stored or on their way
    PENDING = "pending"  # these very bytes are on their way to the disk
    NO_SEAT = "no seat"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Policy:
    """How rounds are run. `max_rounds` counts closed rounds, 0 is no limit; times in seconds."""

    cohort: int
    minimum: int
    over_selection: float = 1.3
    deadline_s: float = 600.0
    max_rounds: int = 0
    interval_s: float = 0.0

    def __post_init__(self) -> None:
        for sound, what in (
            (1 <= self.cohort <= MAX_COHORT, f"cohort must be from 1 to {MAX_COHORT}"),
            (1 <= self.minimum <= self.cohort, "minimum must be from 1 to the cohort"),
            (
                1 <= self.over_selection <= MAX_OVER_SELECTION,
                f"over-selection must be from 1 to {MAX_OVER_SELECTION:g}",
            ),
            (0 < self.deadline_s < math.inf, "deadline must be above 0 seconds"),
            (self.max_rounds >= 0, "rounds must not be negative"),
            (0 <= self.interval_s < math.inf, "round interval must not be negative"),
        ):
            if not sound:
                raise ConfigError(what)

    @property
    def seats(self) -> int:
        """Devices that may train in one round."""
        # Rounded first: 100 * 1.1 is 110.00000000000001 and must not become 111 seats.
        return math.ceil(round(self.cohort * self.over_selection, 6))


class Round:
    """One round, new or as a restart finds it on disk."""

    def __init__(
        self,
        number: int,
        policy: Policy,
        *,
        now_s: float,
        opens_s: float | None = None,
        state: State = State.OPEN,
        seats: Iterable[str] = (),
        failed: Iterable[str] = (),
        updates: Mapping[str, bytes] | None = None,
    ) -> None:
        """`seats` holds also the devices that delivered; `updates` maps a device to a digest."""
        self.number = number
        self.policy = policy
        self.state = state
        self.opens_s = now_s if opens_s is None else opens_s
        self.deadline_s: float | None = None
        self._seats = set(seats)
        self._failed = set(failed)
        self._pending: dict[str, bytes] = {}
        self._updates = dict(updates or {})
        if state is State.TRAINING:
            self.deadline_s = now_s + policy.deadline_s
            if len(self._updates) >= policy.cohort:
                self._apply(Event.ENOUGH)

    @property
    def seats(self) -> frozenset[str]:
        """Devices that hold a seat, also those that have delivered."""
        return frozenset(self._seats)

    @property
    def updates(self) -> frozenset[str]:
        """Devices whose update is stored."""
        return frozenset(self._updates)

    def seat(self, device: str, now_s: float) -> Seating:
        """Give `device` a seat if there is one."""
        if device in self._updates or device in self._pending:
            return Seating.DELIVERED
        if not self._takes_updates(now_s):
            return Seating.OVER
        if device in self._seats:
            return Seating.HELD
        refused = self._refused_seat(device, now_s)
        if refused is not None:
            return refused
        self._seats.add(device)
        if self.state is State.OPEN:
            self._apply(Event.SEATED)
            self.deadline_s = now_s + self.policy.deadline_s
        return Seating.GIVEN

    def give_back(self, device: str, *, failed: bool) -> bool:
        """Free the seat of `device`, unless it delivered. False if there was none to free.

        A device that `failed` gets no other seat in this round: it would fail again at once.
        """
        if device not in self._seats or device in self._updates or device in self._pending:
            return False
        self._seats.remove(device)
        if failed:
            self._failed.add(device)
        return True

    def judge(self, device: str, digest: bytes, now_s: float) -> Verdict:
        """What `reserve` would say, changing nothing."""
        if device in self._updates:
            same = self._updates[device] == digest
            return Verdict.DUPLICATE if same else Verdict.CONFLICT
        if device in self._pending:
            return Verdict.PENDING if self._pending[device] == digest else Verdict.CONFLICT
        if not self._takes_updates(now_s):
            return Verdict.OVER
        return Verdict.ACCEPTED if device in self._seats else Verdict.NO_SEAT

    def reserve(self, device: str, digest: bytes, now_s: float) -> Verdict:
        """Take an update in; if ACCEPTED the caller stores it and calls `stored` or `dropped`."""
        verdict = self.judge(device, digest, now_s)
        if verdict is Verdict.ACCEPTED:
            self._pending[device] = digest
        return verdict

    def stored(self, device: str) -> None:
        """The reserved update of `device` is on disk."""
        self._updates[device] = self._pending.pop(device)
        if len(self._updates) >= self.policy.cohort:
            self._apply(Event.ENOUGH)

    def dropped(self, device: str) -> None:
        """The reserved update of `device` could not be written; it may be sent again."""
        del self._pending[device]

    def tick(self, now_s: float) -> None:
        """Apply the deadline if it has passed. Updates on their way to the disk are waited for."""
        if self.state is State.TRAINING and self._late(now_s) and not self._pending:
            enough = len(self._updates) >= self.policy.minimum
            self._apply(Event.DUE if enough else Event.TOO_FEW)

    def model_stored(self) -> None:
        """The next model is on disk."""
        self._apply(Event.MODEL_STORED)

    def _refused_seat(self, device: str, now_s: float) -> Seating | None:
        if device in self._failed:
            return Seating.FAILED
        if now_s < self.opens_s:
            return Seating.EARLY
        return Seating.FULL if len(self._seats) >= self.policy.seats else None

    def _takes_updates(self, now_s: float) -> bool:
        return (
            self.state in (State.OPEN, State.TRAINING)
            and not self._late(now_s)
            and len(self._updates) + len(self._pending) < self.policy.cohort
        )

    def _late(self, now_s: float) -> bool:
        return self.deadline_s is not None and now_s >= self.deadline_s

    def _apply(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
