# SPDX-License-Identifier: Apache-2.0
"""Runs a task's rounds: joins the state machine, the store and the sums on the event loop.

All state is changed on the event loop, between two awaits. A device is told that it has a seat, has
given it back or has delivered only when that is on disk: a crash takes back nothing that a device
was promised. Until then its seat or update is reserved, and others find the place taken.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TypeVar

from fedlearn.errors import ProtocolError, StorageError
from fedlearn.model import Model
from fedlearn.wire.messages import ActivationRange, Receipt, TrainOrder
from fedlearn_aggregator import optimizers, requantise, scales, store, updates
from fedlearn_aggregator.aggregation import Arrays, DeltaSum
from fedlearn_aggregator.faults import Repeated
from fedlearn_aggregator.optimizers import ServerState
from fedlearn_aggregator.robust import Scales, aggregate
from fedlearn_aggregator.rounds import FINAL, Round, Seating, State, Verdict
from fedlearn_aggregator.store import RoundRow, UpdateRow
from fedlearn_aggregator.tally import Tally
from fedlearn_aggregator.task import Task
from fedlearn_aggregator.updates import CheckedUpdate
from fedlearn_aggregator.writer import Writer

T = TypeVar("T")

# A round that cannot be written (full disk) is tried again at this pace until it can.
RETRY_WRITE_S = 5.0

_log = logging.getLogger(__name__)


class Coordinator:
    """The rounds of one task. Make it with `load`, and keep `run` running."""

    task: Task
    model: Model  # the round's base model; the last one when the task is finished
    round: Round

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.finished = False
        # Set and replaced when a waiting device may get a seat, or never will.
        self.seats_changed = asyncio.Event()
        self.on_model: Callable[[bytes], None] = lambda _digest: None
        self.verdicts: Counter[str] = Counter()  # of updates
        self.ended: Counter[str] = Counter()  # rounds by their final state
        self.downloads = Tally()  # of the round, see `count_download`
        self.trouble = ""  # why the round cannot go on, while it cannot
        self._faults = Repeated(_log)
        # One thread: more would only take the interpreter from the event loop, and from each other.
        self._checking = ThreadPoolExecutor(1, "check")
        self._progress = asyncio.Event()
        self._row: RoundRow
        self._sums: DeltaSum
        self._reports: list[tuple[ActivationRange, ...]] = []
        self._state: ServerState
        self._keeping: dict[str, asyncio.Task[None]] = {}

    @classmethod
    async def load(cls, writer: Writer) -> Coordinator:
        """Go on where the store says, in the middle of a round if need be."""
        self = cls(writer)
        self.task = await writer.do(store.load_task)
        self._state = await writer.do(store.load_state, self.task)
        (row,) = await writer.do(store.load_rounds, 1)
        digest = row.result or row.base
        data = await writer.do(store.load_model, digest)
        if data is None:
            raise StorageError(f"model {digest.hex()} is missing", hint="restore a copy")
        self.model = Model.parse(data)
        seats = await writer.do(store.load_seats, row.number)
        stored = await writer.do(store.load_updates, row.number)
        now_s = _monotonic()
        # The clock may have been set since: never wait longer than the task's interval.
        early_s = min(max(row.opens - time.time(), 0.0), self.task.policy.interval_s)
        self._begin(
            row,
            Round(
                row.number,
                self.task.policy,
                now_s=now_s,
                opens_s=now_s + early_s,
                state=row.state,
                seats=[device for device, failed in seats.items() if not failed],
                failed=[device for device, failed in seats.items() if failed],
                updates={update.device: update.digest for update in stored},
            ),
        )
        self.finished = row.state in FINAL
        if not self.finished:
            for device, body in (await writer.do(store.load_bodies, row.number)).items():
                checked = updates.check(body, self.task, row.number, self.model, device)
                self._sums.add(checked.update.samples, checked.deltas)
                self._norms[checked.update.device] = checked.norm or 0.0
                self._reports.append(checked.update.ranges)
        return self

    async def run(self) -> None:
        """Close and open rounds until the task is finished."""
        while not self.finished:
            # Taken before looking: whatever happens from here on wakes the wait below.
            self._progress.clear()
            now_s = _monotonic()
            self.round.tick(now_s)
            if self.round.state is State.AGGREGATING:
                await self._close_round()
            elif self.round.state is State.ABANDONED:
                await self._finish(State.ABANDONED)
            else:
                await self._sleep(now_s)

    def order(self) -> TrainOrder:
        """What a device with a seat in this round is told."""
        late_s = self.round.deadline_s or 0.0
        return TrainOrder(
            round=self.round.number,
            model=self.model.digest,
            model_bytes=len(self.model.data),
            seed=self.task.round_seed(self.round.number),
            deadline_s=max(late_s - _monotonic(), 0.0),
            tensors=tuple(tensor.index for tensor in self.task.tensors),
            plan=self.task.plan,
            limits=self.task.limits,
        )

    async def take_seat(self, device: str) -> tuple[Seating, TrainOrder | None]:
        """A seat that is on disk, and its order; or the reason why there is none."""
        current = self.round
        seating = current.seat(device, _monotonic())
        if seating not in (Seating.GIVEN, Seating.HELD):
            return seating, None
        order = self.order()
        self._progress.set()
        try:
            await self._writer.do(store.add_seat, current.number, device, time.time())
        except StorageError:
            if seating is Seating.GIVEN and current.give_back(device, failed=False):
                self.announce_seats()
            raise
        return seating, order

    async def give_back(self, device: str, number: int) -> bool:
        """Free a seat whose device failed. False if it has none in round `number`."""
        current = self.round
        if number != current.number or device not in current.seats - current.updates:
            return False
        await self._writer.do(store.fail_seat, number, device)
        if not current.give_back(device, failed=True):
            return False  # it delivered meanwhile
        self.announce_seats()
        return True

    async def submit(self, number: int, device: str, body: bytes) -> Receipt:
        """Take an update in; returns when it is on disk. ProtocolError says why it is refused."""
        try:
            receipt = await self._submit(number, device, body)
        except ProtocolError as error:
            self.verdicts[str(error.status)] += 1
            raise
        self.verdicts["duplicate" if receipt.duplicate else "stored"] += 1
        return receipt

    def count_download(self, digest: bytes, body_bytes: int) -> None:
        """Note that an answer holds a whole model, as a file or a difference of `body_bytes`.

        The rounds tell what their base model cost on the network, so only the current model counts,
        and no part of a download that is resumed. Nobody proves who asks: it is a figure for
        people, which a peer can raise, and takes no more memory when one does.
        """
        if digest == self.model.digest and not self.finished:
            self.downloads = self.downloads.plus(body_bytes)

    def announce_seats(self) -> None:
        """Let all waiting check-ins, and the rounds themselves, look again."""
        self._progress.set()
        self.seats_changed.set()
        self.seats_changed = asyncio.Event()

    async def _submit(self, number: int, device: str, body: bytes) -> Receipt:
        current, model = self.round, self.model
        digest = hashlib.sha256(body).digest()
        if number != current.number:
            return await self._old_receipt(number, device, digest)
        verdict = current.judge(device, digest, _monotonic())
        if verdict is Verdict.ACCEPTED:
            checked = await asyncio.get_running_loop().run_in_executor(
                self._checking, updates.check, body, self.task, number, model, device
            )
            # The round may have moved on meanwhile.
            verdict = current.reserve(device, digest, _monotonic())
            if verdict is Verdict.ACCEPTED:
                keeping = asyncio.create_task(self._keep(current, checked))
                self._keeping[device] = keeping
                # A device that hangs up now does not stop what is on its way to the disk.
                await asyncio.shield(keeping)
                return Receipt(number, duplicate=False)
        if verdict is Verdict.PENDING:
            await asyncio.shield(self._keeping[device])
            verdict = Verdict.DUPLICATE
        return _receipt(number, device, verdict)

    async def _keep(self, current: Round, checked: CheckedUpdate) -> None:
        update = checked.update
        row = UpdateRow(
            device=update.device,
            digest=checked.digest,
            samples=update.samples,
            metrics=update.metrics,
            received=time.time(),
            body_bytes=len(checked.body),
        )
        try:
            await self._writer.do(store.add_update, current.number, row, checked.body)
        except BaseException:
            current.dropped(update.device)
            raise
        else:
            current.stored(update.device)
            self._sums.add(update.samples, checked.deltas)
            self._norms[update.device] = checked.norm or 0.0
            self._reports.append(update.ranges)
        finally:
            del self._keeping[update.device]
            self._progress.set()

    async def _old_receipt(self, number: int, device: str, digest: bytes) -> Receipt:
        if number > self.round.number:
            raise ProtocolError(f"round {number} has not begun", status=404)
        known = await self._writer.do(store.load_update_digest, number, device)
        if known is None:
            return _receipt(number, device, Verdict.OVER)
        verdict = Verdict.DUPLICATE if known == digest else Verdict.CONFLICT
        return _receipt(number, device, verdict)

    async def _sleep(self, now_s: float) -> None:
        """Until something happens, the round opens, or its deadline passes."""
        at_s = self.round.opens_s if self.round.deadline_s is None else self.round.deadline_s
        try:
            # A deadline that has passed waits only for updates on their way to the disk.
            async with asyncio.timeout_at(at_s if now_s < at_s else None):
                await self._progress.wait()
        except TimeoutError:
            self.announce_seats()

    async def _close_round(self) -> None:
        number = self.round.number
        await self._persist(lambda: self._writer.do(store.begin_aggregation, number))
        bodies: dict[str, bytes] = {}
        if not self.task.aggregation.is_plain:
            # From the disk, where they are in any case: a large cohort's deltas fill no memory.
            bodies = await self._persist(lambda: self._writer.do(store.load_bodies, number))
        state, data = await asyncio.to_thread(self._aggregate, bodies)
        await self._finish(State.CLOSED, data, state)

    def _aggregate(self, bodies: Mapping[str, bytes]) -> tuple[ServerState, bytes]:
        tensors, settings = self.task.tensors, self.task.optimizer
        robust = not self.task.aggregation.is_plain
        in_real_units = settings.in_real_units or self.task.aggregation.in_real_units
        steps = requantise.grid_scales(self.model, tensors) if in_real_units else {}
        delta = self._robust(bodies, steps) if robust else self._sums.mean()
        state = optimizers.step(settings, self._state, delta, steps, requantise.edges(tensors))
        if not self.task.rescale:
            return state, requantise.next_model(self.model, tensors, state)
        ranges = scales.merge(self._reports)
        return scales.fit(self.model, tensors, self._state, state, ranges=ranges, settings=settings)

    def _robust(self, bodies: Mapping[str, bytes], steps: Scales) -> Arrays:
        devices = sorted(bodies)
        each = [updates.opener(bodies[device], self.task, self.model) for device in devices]
        norms = [self._norms[device] for device in devices]
        return aggregate(self.task.aggregation, self.task.tensors, each, norms, steps)

    async def _finish(
        self, final: State, data: bytes | None = None, state: ServerState | None = None
    ) -> None:
        policy, row = self.task.policy, self._row
        now = time.time()
        closed = row.closed_before + (final is State.CLOSED)
        finished = policy.max_rounds > 0 and closed >= policy.max_rounds
        opens = max(now, min(row.opens, now) + policy.interval_s)
        newest = await self._persist(
            lambda: self._writer.do(
                store.finish_round,
                self.task,
                row.number,
                final,
                closed=now,
                downloads=self.downloads,
                next_opens=None if finished else opens,
                model=data,
                state=state,
            )
        )
        if final is State.CLOSED:
            self.round.model_stored()
        self.ended[final] += 1
        self._log_round(final, newest.result or newest.base)
        if state is not None and data is not None:
            self._state, self.model = state, Model.parse(data)
            self.on_model(self.model.digest)
        if finished:
            self.finished = True
        else:
            now_s = _monotonic()
            following = Round(newest.number, policy, now_s=now_s, opens_s=now_s + opens - now)
            self._begin(newest, following)
        self.announce_seats()

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                result = await write()
            except StorageError as error:
                self.trouble = f"round {self.round.number} cannot go on: {error}"
                self._faults.error(self.trouble, _monotonic())
                await asyncio.sleep(RETRY_WRITE_S)
            else:
                self.trouble = ""
                return result

    def _begin(self, row: RoundRow, current: Round) -> None:
        self._row, self.round = row, current
        self._sums = DeltaSum(self.task.tensors)
        self._norms: dict[str, float] = {}
        self._reports = []
        self.downloads = Tally()

    def _log_round(self, final: State, current: bytes) -> None:
        deadline_s = self.round.deadline_s or _monotonic()
        started_s = deadline_s - self.task.policy.deadline_s
        _log.info(
            "round %d %s: %d updates of %d devices, %d samples, %s%.1f s, model %s",
            self.round.number,
            final,
            self._sums.updates,
            len(self.round.seats),
            self._sums.samples,
            self._norms_in_words(),
            _monotonic() - started_s,
            current.hex()[:12],
        )

    def _norms_in_words(self) -> str:
        norms = list(self._norms.values())
        if not norms or not self.task.aggregation.in_real_units:
            return ""
        return f"norms {median(norms):.3g} (median) to {max(norms):.3g}, "


def _monotonic() -> float:
    return asyncio.get_running_loop().time()


def _receipt(number: int, device: str, verdict: Verdict) -> Receipt:
    if verdict is Verdict.DUPLICATE:
        return Receipt(number, duplicate=True)
    status, error, hint = {
        Verdict.CONFLICT: (409, f"{device} sent another update for round {number}", ""),
        Verdict.NO_SEAT: (422, f"{device} has no seat in round {number}", "check in first"),
        Verdict.OVER: (410, f"round {number} takes no more updates", "check in for the next one"),
    }[verdict]
    raise ProtocolError(error, status=status, hint=hint)
