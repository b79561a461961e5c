# SPDX-License-Identifier: Apache-2.0
"""The agent's life as one table of states and events.

The machine does no I/O, reads no clock and owns no randomness: `Agent` does what a state says,
and tells the machine how it went. The picture in the documentation is `mermaid()`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class State(Enum):
    """What the agent does now; the value is the name that people see."""

    DISCOVERING = "discovering"  # look for an aggregator of the task
    ENROLLING = "enrolling"  # get a certificate from the aggregator, or the next one
    CHECKING_IN = "checking_in"  # ask the aggregator for work (long poll)
    WAITING = (
        "waiting"  # there is none for as long as the aggregator says, or the policy forbids it
    )
    DOWNLOADING = "downloading"  # get the round's base model, unless it is here already
    TRAINING = "training"  # the trainer process works
    UPLOADING = "uploading"  # deliver the update, which is on disk until it is acknowledged
    GIVING_BACK = "giving_back"  # cannot train: tell the aggregator, so that another device may
    BACKING_OFF = "backing_off"  # something went wrong: wait before the next try
    STOPPED = "stopped"


class Event(Enum):
    """How it went."""

    FOUND = "found"
    FOUND_WITH_UPDATE = "found, an update is unsent"
    FOUND_UNENROLLED = "found, not enrolled there"
    NOT_FOUND = "not found"
    ENROLLED = "enrolled"
    RENEWAL_DUE = "certificate ends soon"
    ORDERED = "told to train"
    TOLD_TO_WAIT = "told to wait"
    NOT_NOW = "policy forbids"
    DUE = "time is up"
    MODEL_READY = "model ready"
    TRAINED = "trained"
    DELIVERED = "delivered"
    ROUND_OVER = "round is over"  # without this update: nothing is wrong with the device
    REFUSED = "update refused"
    FAILED = "failed on this device"
    GIVEN_BACK = "given back"
    UNREACHABLE = "no usable answer"
    STOP = "stop"


_S, _E = State, Event
TRANSITIONS: dict[tuple[State, Event], State] = {
    (_S.DISCOVERING, _E.FOUND): _S.CHECKING_IN,
    (_S.DISCOVERING, _E.FOUND_WITH_UPDATE): _S.UPLOADING,
    (_S.DISCOVERING, _E.FOUND_UNENROLLED): _S.ENROLLING,
    (_S.DISCOVERING, _E.NOT_FOUND): _S.BACKING_OFF,
    (_S.ENROLLING, _E.ENROLLED): _S.DISCOVERING,  # which knows the address by now
    (_S.ENROLLING, _E.FAILED): _S.BACKING_OFF,
    (_S.ENROLLING, _E.UNREACHABLE): _S.BACKING_OFF,
    (_S.CHECKING_IN, _E.RENEWAL_DUE): _S.ENROLLING,
    (_S.CHECKING_IN, _E.ORDERED): _S.DOWNLOADING,
    (_S.CHECKING_IN, _E.TOLD_TO_WAIT): _S.WAITING,
    (_S.CHECKING_IN, _E.NOT_NOW): _S.WAITING,  # before it asks: no seat is taken
    (_S.CHECKING_IN, _E.FAILED): _S.BACKING_OFF,
    (_S.CHECKING_IN, _E.UNREACHABLE): _S.BACKING_OFF,
    (_S.WAITING, _E.DUE): _S.CHECKING_IN,
    (_S.DOWNLOADING, _E.MODEL_READY): _S.TRAINING,
    (_S.DOWNLOADING, _E.NOT_NOW): _S.GIVING_BACK,
    (_S.DOWNLOADING, _E.FAILED): _S.GIVING_BACK,
    (_S.DOWNLOADING, _E.UNREACHABLE): _S.BACKING_OFF,
    (_S.TRAINING, _E.TRAINED): _S.UPLOADING,
    (_S.TRAINING, _E.NOT_NOW): _S.GIVING_BACK,  # what was trained is dropped
    (_S.TRAINING, _E.FAILED): _S.GIVING_BACK,
    (_S.UPLOADING, _E.DELIVERED): _S.CHECKING_IN,
    (_S.UPLOADING, _E.ROUND_OVER): _S.CHECKING_IN,
    (_S.UPLOADING, _E.REFUSED): _S.BACKING_OFF,
    (_S.UPLOADING, _E.UNREACHABLE): _S.BACKING_OFF,
    (_S.GIVING_BACK, _E.GIVEN_BACK): _S.BACKING_OFF,
    (_S.GIVING_BACK, _E.NOT_NOW): _S.WAITING,  # given back for the policy: nothing went wrong
    (_S.GIVING_BACK, _E.UNREACHABLE): _S.BACKING_OFF,
    (_S.BACKING_OFF, _E.DUE): _S.DISCOVERING,
    **{(state, _E.STOP): _S.STOPPED for state in _S if state is not _S.STOPPED},
}
INITIAL = State.DISCOVERING


def next_state(state: State, event: Event) -> State:
    """Return the state after `event`. A pair that is not in the table is a fault of ours."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise AssertionError(f"{event.name} cannot happen in state {state.name}") from None


def mermaid() -> str:
    """Draw the table as a Mermaid state diagram; STOP, which every state takes, is left out."""
    labels: dict[tuple[State, State], list[str]] = {}
    for (state, event), target in TRANSITIONS.items():
        if event is not Event.STOP:
            labels.setdefault((state, target), []).append(event.value)
    arrows = [f"    [*] --> {INITIAL.value}"]
    arrows += [
        f"    {state.value} --> {target.value}: {' / '.join(events)}"
        for (state, target), events in labels.items()
    ]
    return "\n".join(["stateDiagram-v2", *arrows]) + "\n"


class Backoff:
    """Exponential back-off with full jitter.

    Each delay is drawn evenly from zero to a ceiling that doubles with every failure in a row. Of
    the usual schemes it spreads a fleet that failed at the same moment the widest (M. Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    def __init__(
        self, first_s: float, cap_s: float, uniform: Callable[[float, float], float]
    ) -> None:
        self.failures = 0
        self._first_s = first_s
        self._cap_s = cap_s
        self._uniform = uniform

    def next_delay_s(self) -> float:
        """Count a failure and return the seconds to wait."""
        # Beyond 2^32 first_s the cap has long been reached; it keeps the power a small number.
        ceiling_s = min(self._cap_s, self._first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return self._uniform(0.0, ceiling_s)

    def reset(self) -> None:
        """Start again from the shortest delay."""
        self.failures = 0
