# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.agent.machine import INITIAL, TRANSITIONS, Backoff, Event, State, mermaid, next_state


def events_of(state: State) -> list[Event]:
    return [event for (source, event) in TRANSITIONS if source is state]


def test_every_state_can_be_stopped_and_stopped_is_the_end() -> None:
    for state in State:
        assert (Event.STOP in events_of(state)) == (state is not State.STOPPED)
    assert events_of(State.STOPPED) == []


def test_every_state_is_reached_and_left() -> None:
    reached, todo = {INITIAL}, [INITIAL]
    while todo:
        state = todo.pop()
        for event in events_of(state):
            target = next_state(state, event)
            if target not in reached:
                reached.add(target)
                todo.append(target)
    assert reached == set(State)
    for state in set(State) - {State.STOPPED}:
        assert len(events_of(state)) >= 2, f"{state} can only be stopped"


def test_every_event_happens_somewhere() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_an_event_that_cannot_happen_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="DELIVERED cannot happen in state WAITING"):
        next_state(State.WAITING, Event.DELIVERED)


@given(st.randoms(use_true_random=False), st.integers(1, 200))
def test_walks_keep_their_promises(rng: random.Random, steps: int) -> None:
    """Trained only on an order, delivered only what was trained, back at work after failures."""
    state, has_model, has_update = INITIAL, False, rng.random() < 0.5
    for _ in range(steps):
        choices = events_of(state)
        if state is State.DISCOVERING:  # the agent tells these two apart by its disk
            choices.remove(Event.FOUND if has_update else Event.FOUND_WITH_UPDATE)
        event = rng.choice(choices)
        following = next_state(state, event)
        if event is Event.MODEL_READY:
            has_model = True
        if following is State.TRAINING:
            assert has_model
        if following is State.UPLOADING:
            has_update = has_update or event is Event.TRAINED
            assert has_update
        if state is State.UPLOADING and event in (
            Event.DELIVERED,
            Event.ROUND_OVER,
            Event.REFUSED,
        ):
            has_update = False
        if following is State.CHECKING_IN:
            assert not has_update, "a check-in before the unsent update"
        if event in (Event.FAILED, Event.UNREACHABLE, Event.NOT_FOUND, Event.REFUSED):
            assert following in (State.BACKING_OFF, State.GIVING_BACK)
        state = following
        if state is State.STOPPED:
            break


def test_the_picture_has_every_arrow() -> None:
    picture = mermaid()
    assert picture.startswith("stateDiagram-v2\n    [*] --> discovering\n")
    for (state, event), target in TRANSITIONS.items():
        arrow = f"{state.value} --> {target.value}: "
        lines = [line for line in picture.splitlines() if arrow in line]
        assert any(event.value in line for line in lines) == (event is not Event.STOP)


@given(st.integers(0, 200), st.floats(0, 1))
def test_backoff_grows_to_its_cap_with_full_jitter(failures: int, share: float) -> None:
    backoff = Backoff(0.5, 60.0, lambda low, high: low + share * (high - low))
    for _ in range(failures):
        backoff.next_delay_s()
    assert backoff.next_delay_s() == pytest.approx(
        share * min(60.0, 0.5 * 2.0 ** min(failures, 32))
    )
    backoff.reset()
    assert backoff.next_delay_s() == pytest.approx(share * 0.5)
