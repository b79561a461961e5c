# SPDX-License-Identifier: Apache-2.0
"""The round state machine keeps its promises whatever happens, in whatever order."""

import textwrap

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedlearn.errors import ConfigError
from fedlearn_aggregator import rounds
from fedlearn_aggregator.rounds import (
    FINAL,
    TRANSITIONS,
    Event,
    Policy,
    Round,
    Seating,
    State,
    Verdict,
)

DEVICES = st.sampled_from([f"d{i}" for i in range(6)])
DIGESTS = st.sampled_from([b"a" * 32, b"b" * 32])


def test_every_state_is_reached_and_final_states_have_no_way_out() -> None:
    reached = {State.OPEN} | set(TRANSITIONS.values())
    assert reached == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State) - FINAL
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_the_picture_in_the_docstring_is_the_table() -> None:
    assert textwrap.indent(rounds.mermaid(), "    ") in (rounds.__doc__ or "")
    for (state, event), to in TRANSITIONS.items():
        assert f"{state} --> {to}: {event}\n" in rounds.mermaid()


def test_seats_are_the_cohort_times_the_factor_rounded_up() -> None:
    assert Policy(10, 1).seats == 13
    assert Policy(100, 1, over_selection=1.1).seats == 110
    assert Policy(3, 1, over_selection=1.0).seats == 3
    assert Policy(1, 1).seats == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"cohort": 0},
        {"minimum": 0},
        {"minimum": 5},
        {"over_selection": 0.9},
        {"over_selection": float("nan")},
        {"deadline_s": 0.0},
        {"deadline_s": float("inf")},
        {"max_rounds": -1},
        {"interval_s": -1.0},
    ],
)
def test_a_policy_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    Policy(**{"cohort": 4, "minimum": 2})  # control
    with pytest.raises(ConfigError):
        Policy(**{"cohort": 4, "minimum": 2, **wrong})  # type: ignore[arg-type]


def begun(cohort: int = 2, minimum: int = 1, devices: str = "abc") -> Round:
    current = Round(1, Policy(cohort, minimum, over_selection=1.5, deadline_s=10.0), now_s=100.0)
    for device in devices:
        assert current.seat(device, 100.0) is Seating.GIVEN
    return current


def state_of(current: Round) -> State:
    """A call, so that mypy does not think that the state stays as an assertion found it."""
    return current.state


def deliver(current: Round, device: str, now_s: float = 101.0) -> None:
    assert current.reserve(device, b"x", now_s) is Verdict.ACCEPTED
    current.stored(device)


def test_the_cohort_ends_a_round() -> None:
    current = begun()
    deliver(current, "a")
    assert state_of(current) is State.TRAINING
    assert current.seat("a", 101.0) is Seating.DELIVERED
    deliver(current, "b")
    assert state_of(current) is State.AGGREGATING
    assert current.reserve("c", b"x", 102.0) is Verdict.OVER
    assert current.reserve("a", b"x", 102.0) is Verdict.DUPLICATE
    assert current.reserve("a", b"y", 102.0) is Verdict.CONFLICT
    current.model_stored()
    assert current.state is State.CLOSED


def test_the_deadline_runs_from_the_first_seat_and_decides_by_the_minimum() -> None:
    late = Round(1, Policy(2, 1, deadline_s=10.0), now_s=0.0)
    late.tick(1e6)
    assert late.state is State.OPEN  # nobody came yet: nothing to be late for
    for stored, state in (("a", State.AGGREGATING), ("", State.ABANDONED)):
        current = begun()
        for device in stored:
            deliver(current, device)
        current.tick(109.9)
        assert current.state is State.TRAINING
        current.tick(110.0)
        assert current.state is state


def test_the_deadline_waits_for_an_update_on_its_way_to_the_disk() -> None:
    current = begun()
    assert current.reserve("a", b"x", 109.0) is Verdict.ACCEPTED
    current.tick(111.0)
    assert state_of(current) is State.TRAINING
    assert current.reserve("b", b"x", 111.0) is Verdict.OVER
    current.stored("a")
    current.tick(111.0)
    assert current.state is State.AGGREGATING


def test_a_failed_device_frees_its_seat_and_waits_for_the_next_round() -> None:
    current = begun()
    assert current.seat("d", 101.0) is Seating.FULL
    assert current.give_back("a", failed=True)
    assert not current.give_back("a", failed=True)
    assert current.seat("a", 101.0) is Seating.FAILED
    assert current.seat("d", 101.0) is Seating.GIVEN
    assert current.reserve("a", b"x", 101.0) is Verdict.NO_SEAT


def test_a_round_opens_at_its_time() -> None:
    current = Round(2, Policy(1, 1), now_s=0.0, opens_s=50.0)
    assert current.seat("a", 49.0) is Seating.EARLY
    assert current.seat("a", 50.0) is Seating.GIVEN


def test_a_restart_goes_on_with_the_same_seats_and_a_new_deadline() -> None:
    current = Round(
        3,
        Policy(2, 1, deadline_s=10.0),
        now_s=5.0,
        state=State.TRAINING,
        seats=["a", "b"],
        failed=["c"],
        updates={"a": b"x"},
    )
    assert current.deadline_s == 15.0
    assert current.seat("b", 6.0) is Seating.HELD
    assert current.seat("c", 6.0) is Seating.FAILED
    deliver(current, "b", 6.0)
    assert current.state is State.AGGREGATING
    complete = Round(
        3, Policy(1, 1), now_s=5.0, state=State.TRAINING, seats=["a"], updates={"a": b"x"}
    )
    assert complete.state is State.AGGREGATING


class Rounds(RuleBasedStateMachine):
    """Devices, the disk and the clock do what they like."""

    @initialize(
        cohort=st.integers(1, 4),
        minimum=st.integers(1, 4),
        factor=st.sampled_from([1.0, 1.3, 2.0]),
    )
    def begin(self, cohort: int, minimum: int, factor: float) -> None:
        self.policy = Policy(cohort, min(minimum, cohort), over_selection=factor, deadline_s=10.0)
        self.now_s = 0.0
        self.round = Round(1, self.policy, now_s=0.0)
        self.pending: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.failed: set[str] = set()
        self.seen = [State.OPEN]

    @rule(device=DEVICES)
    def ask_for_a_seat(self, device: str) -> None:
        held = device in self.round.seats
        seating = self.round.seat(device, self.now_s)
        assert (seating is Seating.HELD) <= held
        if seating is Seating.GIVEN:
            assert not held
            assert device not in self.failed

    @rule(device=DEVICES, failed=st.booleans())
    def give_back(self, device: str, failed: bool) -> None:
        if self.round.give_back(device, failed=failed):
            assert device not in self.stored
            assert device not in self.pending
            if failed:
                self.failed.add(device)

    @rule(device=DEVICES, digest=DIGESTS)
    def send(self, device: str, digest: bytes) -> None:
        foreseen = self.round.judge(device, digest, self.now_s)
        verdict = self.round.reserve(device, digest, self.now_s)
        assert verdict is foreseen
        if device in self.stored:
            same = self.stored[device] == digest
            assert verdict is (Verdict.DUPLICATE if same else Verdict.CONFLICT)
        elif verdict is Verdict.ACCEPTED:
            assert device in self.round.seats
            self.pending[device] = digest

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), written=st.booleans())
    def disk(self, data: st.DataObject, written: bool) -> None:
        device = data.draw(st.sampled_from(sorted(self.pending)))
        digest = self.pending.pop(device)
        if written:
            self.round.stored(device)
            self.stored[device] = digest
        else:
            self.round.dropped(device)

    @rule(step_s=st.sampled_from([0.0, 1.0, 6.0, 11.0]))
    def clock(self, step_s: float) -> None:
        self.now_s += step_s
        self.round.tick(self.now_s)

    @precondition(lambda self: self.round.state is State.AGGREGATING)
    @rule()
    def aggregate(self) -> None:
        self.round.model_stored()

    @precondition(lambda self: not self.pending and self.round.state not in FINAL)
    @rule()
    def restart(self) -> None:
        # Seats and updates are on disk, reservations are not, a failed seat is.
        self.round = Round(
            1,
            self.policy,
            now_s=self.now_s,
            state=self.round.state,
            seats=self.round.seats,
            failed=self.failed,
            updates=self.stored,
        )

    @invariant()
    def promises_hold(self) -> None:
        if not hasattr(self, "round"):
            return
        current, policy = self.round, self.policy
        assert current.updates == set(self.stored)
        assert len(current.seats) <= policy.seats
        assert current.updates | set(self.pending) <= current.seats
        # What is acknowledged is what is aggregated: never more than the cohort.
        assert len(self.stored) + len(self.pending) <= policy.cohort
        if current.state is not self.seen[-1]:
            assert current.state in {
                to for (state, _), to in TRANSITIONS.items() if state is self.seen[-1]
            } or (self.seen[-1], current.state) == (State.OPEN, State.TRAINING)
            self.seen.append(current.state)
        match current.state:
            case State.OPEN:
                assert not current.seats
                assert current.deadline_s is None
            case State.TRAINING:
                assert current.deadline_s is not None
                assert len(self.stored) < policy.cohort
            case State.AGGREGATING | State.CLOSED:
                assert not self.pending
                assert len(self.stored) >= policy.minimum
            case State.ABANDONED:
                assert not self.pending
                assert len(self.stored) < policy.minimum


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
