# SPDX-License-Identifier: Apache-2.0
"""The agent: does what the state machine's states say, one after the other, in one thread."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedlearn.agent import permission, sensors
from fedlearn.agent.aggregators import Aggregators
from fedlearn.agent.allowance import after_death, kind_of
from fedlearn.agent.connection import Connection
from fedlearn.agent.download import download_model
from fedlearn.agent.endpoint import Endpoint
from fedlearn.agent.identity import Identity
from fedlearn.agent.machine import INITIAL, Backoff, Event, State, next_state
from fedlearn.agent.permission import Forbidden, Permission
from fedlearn.agent.search import SEARCHER
from fedlearn.agent.state import Memory, StateDirectory
from fedlearn.agent.status import Status, headline, judged, process_age_s, rss_bytes, write_status
from fedlearn.agent.stop import Stopped, StopSignal
from fedlearn.agent.trainer_process import WORKER, TrainerProcess
from fedlearn.agent.transport import (
    Delivery,
    RefusedError,
    check_in,
    confirm_task,
    enrol,
    send_update,
)
from fedlearn.agent.trust import Trust
from fedlearn.config import Config
from fedlearn.durable import storage_errors
from fedlearn.errors import (
    FedlearnError,
    NetworkError,
    ProtocolError,
    StorageError,
    TrainerError,
    TrainerMemoryError,
    UnrecognisedError,
)
from fedlearn.jobs import Done, PatchJob, TrainJob
from fedlearn.notify import Notifier
from fedlearn.text import clean
from fedlearn.wire.messages import CheckIn, Enrolment, TrainingFailure, TrainOrder

# Whatever the aggregator asks for: not in a hot loop, and not for ever.
MIN_WAIT_S, MAX_WAIT_S = 0.05, 3600.0
# An aggregator that restarts is back within seconds. A search costs a slow board half a second of
# its processor, which with this cap is less than half a percent.
FIRST_DELAY_S, MAX_DELAY_S = 1.0, 300.0
# To give a seat back is a courtesy: the round's deadline would free it, too.
GIVE_BACK_TIMEOUT_S = 5.0
# There are months for it.
RENEW_AGAIN_S = 3600.0
PROGRESS_INTERVAL_S = 1.0

logger = logging.getLogger(__name__)


class Agent:
    """One device of one task. `run` returns when a stop is requested.

    `root` is where sysfs and procfs are, for the policy.
    """

    def __init__(
        self,
        config: Config,
        stop: StopSignal,
        *,
        worker: Sequence[str] = WORKER,
        searcher: Sequence[str] = SEARCHER,
        uniform: Callable[[float, float], float] = random.uniform,
        notifier: Notifier | None = None,
        root: Path = sensors.ROOT,
    ) -> None:
        self._config = config
        self._stop = stop
        self._state = StateDirectory(config.device.state_dir)
        self._memory = self._state.memory()
        self._aggregators = Aggregators(
            config.aggregator, stop, self._memory.aggregator, searcher=searcher
        )
        self._trainer = TrainerProcess(config.training, stop, worker, root)
        self._permission = Permission(config.policy, config.training.threads, root)
        self._notifier = notifier or Notifier()
        self._identity = Identity(config.device.state_dir, config.device.name)
        self._trust = Trust(config.aggregator.ca, self._identity)
        ca = config.aggregator.ca
        self._certified = self._identity.certified(ca) if ca is not None else None
        if self._certified is not None:
            self._trust.clock.learn(self._certified.issued)
        self._unrecognised = False  # the aggregator takes no certificate that this device has
        self._renew_after = 0.0  # monotonic seconds; a renewal that failed is no reason to rest
        self._connection: Connection | None = None
        self._confirmed: Endpoint | None = None  # it has proved to be of this task
        # Two of a kind: a success on the network says nothing about the trainer.
        self._network = Backoff(FIRST_DELAY_S, MAX_DELAY_S, uniform)
        self._training = Backoff(FIRST_DELAY_S, MAX_DELAY_S, uniform)
        self._backoff = self._network
        self._wait_s = 0.0
        self._order: TrainOrder | None = None
        self._deadline = 0.0
        self._reason = self._idle_reason = ""
        self._excuse = ""  # why a seat is given back, when that is no failure
        self._progress_shown = 0.0
        self._status_path = config.device.runtime_dir / "status.json"
        self._status = Status(
            state=INITIAL.value,
            pid=os.getpid(),
            device=config.device.name,
            task=config.aggregator.task,
            started=time.time(),
            certificate_expires=self._certified.expires if self._certified else 0.0,
        )
        self._pending = self._load_pending()
        self._steps = {
            State.DISCOVERING: self._discover,
            State.ENROLLING: self._enrol,
            State.CHECKING_IN: self._check_in,
            State.WAITING: self._wait,
            State.DOWNLOADING: self._download,
            State.TRAINING: self._train,
            State.UPLOADING: self._upload,
            State.GIVING_BACK: self._give_back,
            State.BACKING_OFF: self._back_off,
        }

    def run(self) -> None:
        """Take part in the task until a stop is requested."""
        runtime_dir = self._config.device.runtime_dir
        with storage_errors("create", runtime_dir):
            runtime_dir.mkdir(parents=True, exist_ok=True)
        self._publish()
        logger.info("%s joins task %s", self._status.device, self._status.task)
        try:
            with self._watched():
                self._run()
            logger.info("stopped")
        finally:
            self._notifier.stopping()
            self._trainer.close()
            if self._connection is not None:
                self._connection.close()
            self._state.close()

    def _run(self) -> None:
        state = INITIAL
        # It has its directory and knows what it kept there, and from here on it takes requests to
        # stop. An aggregator is none of it: the LAN may come up hours later.
        self._notifier.ready()
        while state is not State.STOPPED:
            event = self._step(state)
            logger.debug("%s: %s", state.value, event.value)
            state = next_state(state, event)
            self._publish(state=state.value, reason=self._reason)
            self._reason = ""

    def _watched(self) -> contextlib.AbstractContextManager[None]:
        """Within it, systemd's watchdog is told that the loop goes round, as long as it does."""
        if self._notifier.watchdog_s is None:
            return contextlib.nullcontext()
        return self._stop.every(self._notifier.watchdog_s, self._notifier.alive)

    def _step(self, state: State) -> Event:
        """Do what the state says; failures become events."""
        self._trainer.reap()
        try:
            return self._steps[state]()
        except Stopped:
            return Event.STOP
        except Forbidden:
            self._reason = self._permission.verdict.reason
            self._excuse = f"not now, by its policy: {self._reason}"
            self._show_policy()
            return Event.NOT_NOW
        except (NetworkError, ProtocolError) as error:
            self._note(error, self._network)
            self._confirmed = None
            self._unrecognised = isinstance(error, UnrecognisedError)
            self._aggregators.failed(self._connected().endpoint)
            return Event.UNREACHABLE
        except FedlearnError as error:
            self._note(error, self._training)
            return Event.FAILED

    # What the states do, in the order of a round.

    def _discover(self) -> Event:
        try:
            endpoint = self._aggregators.choose(self._prove)
            self._connect(endpoint)
        except FedlearnError as error:
            self._note(error, self._network)
            return Event.NOT_FOUND
        if self._aggregators.is_new(endpoint):
            self._network.reset()
        self._publish(aggregator=str(endpoint))
        if endpoint.tls and self._must_enrol():
            return Event.FOUND_UNENROLLED
        return Event.FOUND_WITH_UPDATE if self._pending else Event.FOUND

    def _prove(self, endpoint: Endpoint, timeout_s: float) -> None:
        """Connect, and see that it is an aggregator that can prove who it is; say nothing yet."""
        self._connect(endpoint)
        self._connected().prove(timeout_s)

    def _must_enrol(self) -> bool:
        """Whether there is no certificate, or none that counts while a token may bring another."""
        has_token = self._config.aggregator.token is not None
        return self._certified is None or (self._unrecognised and has_token)

    def _enrol(self) -> Event:
        config, renews = self._config, not self._must_enrol()
        # Whatever comes of it, the next try is with the certificate, if there is one: its owner may
        # have let the device in again.
        self._unrecognised = False
        self._renew_after = time.monotonic() + RENEW_AGAIN_S
        token = None if renews else config.aggregator.read_token()
        enrolment = Enrolment(self._identity.request(), token)
        # An old certificate would be refused before the token is seen.
        trust = self._trust if renews else replace(self._trust, identity=None)
        with contextlib.closing(Connection(self._connected().endpoint, trust, self._stop)) as link:
            try:
                issued = enrol(link, config.device.name, enrolment)
            except UnrecognisedError as error:  # it speaks of the token
                raise NetworkError(error.message, hint=error.hint) from error
        certified = self._identity.take(issued)
        self._certified = certified
        self._trust.clock.learn(certified.issued)
        self._publish(certificate_expires=certified.expires)
        self._connected().close()  # it opens again with the new certificate
        self._network.reset()
        logger.info("%s", "the certificate is renewed" if renews else "enrolled")
        return Event.ENROLLED

    def _check_in(self) -> Event:
        config = self._config
        if self._renewal_is_due():
            return Event.RENEWAL_DUE
        self._permission.demand()  # a device that may not train takes no seat
        self._show_policy()
        config.data.check()
        reply = check_in(self._connected(), CheckIn(config.aggregator.task, config.device.name))
        self._note_answer()
        if isinstance(reply, TrainOrder):
            self._order = reply
            self._deadline = time.monotonic() + reply.deadline_s
            self._idle_reason = self._excuse = ""
            self._publish(round=reply.round, model=reply.model.hex())
            return Event.ORDERED
        self._network.reset()
        self._wait_s = min(max(reply.retry_s, MIN_WAIT_S), MAX_WAIT_S)
        reason = clean(reply.reason)
        if reason != self._idle_reason:  # once, not every half minute for a night
            logger.info("no work: %s", reason)
        self._idle_reason = self._reason = reason
        return Event.TOLD_TO_WAIT

    def _wait(self) -> Event:
        if self._permission.verdict.allows:
            self._trainer.wait(self._wait_s)
        while not self._permission.ask().allows:
            self._show_policy(reason=self._permission.verdict.reason)
            self._trainer.wait(permission.INTERVAL_S)
        self._reason = self._idle_reason  # it holds while the next check-in does
        return Event.DUE

    def _download(self) -> Event:
        order, models = self._ordered(), self._state.models
        with self._stop.every(permission.INTERVAL_S, self._permission.demand):
            if not models.has(order.model):
                self._get_model(order)
                models.prune(order.model)
        # Not already at the order: a model that never comes must not be asked for in a hot loop.
        self._network.reset()
        return Event.MODEL_READY

    def _get_model(self, order: TrainOrder) -> None:
        models = self._state.models
        for base in (models.newest(), None):
            try:
                download = download_model(
                    self._connected(),
                    models,
                    order.model,
                    order.model_bytes,
                    base=base,
                    deadline=self._deadline,
                )
            except (NetworkError, ProtocolError) as error:
                # The next try would ask for the same difference. The file needs no work of the
                # aggregator, and a broken download of it resumes.
                if base is None:
                    raise
                logger.warning("no difference: %s", error)
                continue
            self._publish(
                bytes_down=self._status.bytes_down + download.body_bytes,
                model_download_bytes=download.body_bytes,
            )
            if download.difference is None:
                break
            if base is not None and self._patch(order, base, download.difference):
                break
        if not models.has(order.model):
            raise ProtocolError("the aggregator sends no usable model")

    def _patch(self, order: TrainOrder, base: bytes, difference: bytes) -> bool:
        """Rebuild the order's model; if that fails, the caller takes the whole file."""
        models = self._state.models
        job = PatchJob(
            base_path=str(models.file(base)),
            difference=difference,
            target_path=str(models.file(order.model)),
            target=order.model,
        )
        try:
            self._trainer.run(job, self._deadline)
        except TrainerError as error:
            logger.warning("the difference cannot be used: %s", error)
            return False
        return models.has(order.model)

    def _train(self) -> Event:
        order, config = self._ordered(), self._config.training
        kind = kind_of(self._config.aggregator.task, order, config)
        allowed_kib = self._memory.allowance.of(kind)
        self._publish(memory_allowance_kib=allowed_kib)
        job = TrainJob(
            task=self._config.aggregator.task,
            device=self._config.device.name,
            round=order.round,
            model=order.model,
            model_path=str(self._state.models.file(order.model)),
            data_path=str(self._config.data.path),
            seed=order.seed,
            tensors=order.tensors,
            plan=order.plan,
            max_samples=order.limits.samples,
            budget_kib=allowed_kib or config.memory_kib,
            personal_epochs=config.personal_epochs,
            personal_path=str(self._state.personal),
        )
        try:
            done = self._run_training(job)
        except TrainerMemoryError as error:
            self._allow_less(kind, job.budget_kib, error.need_kib)
            raise
        self._publish(
            trainer_peak_rss_bytes=max(self._status.trainer_peak_rss_bytes, done.peak_rss_bytes),
            accuracy=done.accuracy,
            accuracy_personal=done.accuracy_personal,
            loss=done.loss,
            loss_personal=done.loss_personal,
        )
        if len(done.body) > order.limits.update_bytes:
            raise TrainerError(
                f"the update has {len(done.body)} bytes, the task allows "
                f"{order.limits.update_bytes}"
            )
        logger.info(
            "round %d: trained on %d samples in %.2f s", order.round, done.samples, done.train_s
        )
        for reason in done.choice:
            logger.info("round %d: budget: %s", order.round, reason)
        if done.unpinned:
            logger.info(
                "round %d: another machine may train other bits: %s", order.round, done.unpinned
            )
        if done.loss_personal is not None:
            logger.info(
                "round %d: this device's own copy: %s",
                order.round,
                judged(done.accuracy_personal, done.loss_personal),
            )
        self._pending = (order.round, done.body)
        try:
            self._state.save_pending(done.body)
        except StorageError as error:  # it can still be delivered, if the power stays on
            logger.warning("the update is in memory only: %s", error)
        return Event.TRAINED

    def _run_training(self, job: TrainJob) -> Done:
        """Train, as long as the policy allows it."""

        def demand() -> None:
            self._permission.demand(training=True)
            self._show_policy()

        try:
            with self._stop.every(permission.INTERVAL_S, demand):
                return self._trainer.run(
                    job,
                    self._deadline,
                    on_sent=self._note_first_training,
                    on_progress=self._show_progress,
                )
        finally:
            self._permission.trained()

    def _upload(self) -> Event:
        assert self._pending is not None
        number, body = self._pending
        connection, task = self._connected(), self._config.aggregator.task
        # An update tells of the data: no other task's aggregator gets it. The address may have been
        # remembered, or be configured wrongly.
        if connection.endpoint != self._confirmed:
            confirm_task(connection, task)
        try:
            delivery = send_update(connection, task, number, self._config.device.name, body)
        except RefusedError as error:
            self._note(error, self._training)
            self._drop_pending()
            return Event.REFUSED
        self._note_answer()
        self._network.reset()
        if delivery is Delivery.NOT_BEGUN:
            # It goes out again after the next failure or restart, unless a newer one replaces it.
            # Not sooner: with all devices waiting for that round it would never begin.
            logger.warning("round %d has not begun there; its update is kept", number)
            return Event.ROUND_OVER
        self._training.reset()
        self._drop_pending()
        self._publish(bytes_up=self._status.bytes_up + len(body), update_bytes=len(body))
        if delivery is Delivery.CONFLICT:
            problem = (
                f"round {number} has another update of a device called "
                f"{self._config.device.name}: give each device a device.name of its own"
            )
            logger.warning("%s", problem)
            self._publish(last_error=problem)
            return Event.ROUND_OVER
        if delivery is Delivery.ROUND_OVER:
            logger.info("round %d is over without this device's update", number)
            return Event.ROUND_OVER
        logger.info("round %d: update of %d bytes delivered", number, len(body))
        self._publish(rounds_trained=self._status.rounds_trained + 1, last_error="")
        return Event.DELIVERED

    def _give_back(self) -> Event:
        config, order = self._config, self._ordered()
        excuse, self._excuse = self._excuse, ""
        failure = TrainingFailure(order.round, clean(excuse or self._status.last_error))
        message = CheckIn(config.aggregator.task, config.device.name, failure)
        # Whatever comes back counts at the next check-in only: first this device backs off.
        with contextlib.suppress(NetworkError, ProtocolError):
            check_in(self._connected(), message, GIVE_BACK_TIMEOUT_S)
        if excuse:
            self._reason, self._wait_s = self._permission.verdict.reason, MIN_WAIT_S
            return Event.NOT_NOW
        return Event.GIVEN_BACK

    def _back_off(self) -> Event:
        delay_s = self._backoff.next_delay_s()
        self._publish(reason=f"{self._status.last_error}; next try in {delay_s:.1f} s")
        logger.info("next try in %.1f s", delay_s)
        self._trainer.wait(delay_s)
        return Event.DUE

    # Small things.

    def _connect(self, endpoint: Endpoint) -> None:
        """Use this aggregator from now on."""
        if self._connection is not None:
            if self._connection.endpoint == endpoint:
                return
            self._connection.close()
        self._connection = Connection(endpoint, self._trust, self._stop)

    def _renewal_is_due(self) -> bool:
        return (
            self._connected().endpoint.tls
            and self._certified is not None
            and self._trust.clock.now() >= self._certified.renew_from
            and time.monotonic() >= self._renew_after
        )

    def _note_answer(self) -> None:
        """The aggregator gave a proper answer: it is the one to remember."""
        endpoint = self._connected().endpoint
        self._confirmed = endpoint
        self._aggregators.answered(endpoint)
        if not self._config.aggregator.url and self._memory.aggregator != str(endpoint):
            self._remember(replace(self._memory, aggregator=str(endpoint)))

    def _remember(self, memory: Memory) -> None:
        self._memory = memory
        try:
            self._state.remember(memory)
        except StorageError as error:
            logger.warning("%s", error)

    def _allow_less(self, kind: str, budget_kib: int, need_kib: int) -> None:
        """A training of this kind took more memory than there is: the next may need less."""
        allowance = after_death(kind, budget_kib, need_kib)
        if allowance is not None:
            logger.warning("the next training may need %d KiB", allowance.kib)
            self._remember(replace(self._memory, allowance=allowance))
            self._publish(memory_allowance_kib=allowance.kib)

    def _load_pending(self) -> tuple[int, bytes] | None:
        found = self._state.pending()
        if found is None:
            return None
        update, body = found
        mine = (self._config.aggregator.task, self._config.device.name)
        if (update.task, update.device) != mine:
            logger.warning("an unsent update of %s for %s is dropped", update.device, update.task)
            self._drop_pending()
            return None
        return update.round, body

    def _drop_pending(self) -> None:
        self._pending = None
        try:
            self._state.drop_pending()
        except StorageError as error:  # sent again after a restart, it is refused or a duplicate
            logger.warning("%s", error)

    def _connected(self) -> Connection:
        assert self._connection is not None
        return self._connection

    def _ordered(self) -> TrainOrder:
        assert self._order is not None
        return self._order

    def _note(self, error: FedlearnError, backoff: Backoff) -> None:
        """Log a failure, show it in the status, and choose who says how long to back off."""
        logger.warning("%s", error)
        self._backoff = backoff
        self._reason = str(error)
        self._publish(last_error=str(error))

    def _note_first_training(self) -> None:
        if self._status.first_training_s is None:
            self._publish(first_training_s=round(process_age_s(), 3))

    def _show_progress(self, done: float) -> None:
        now = time.monotonic()
        if now - self._progress_shown >= PROGRESS_INTERVAL_S:
            self._progress_shown = now
            self._publish(reason=f"{done:.0%}")

    def _show_policy(self, **changes: str) -> None:
        """Show what the policy says, if that is news."""
        now = {"policy": self._permission.verdict.checks, **changes}
        if any(getattr(self._status, name) != value for name, value in now.items()):
            self._publish(**now)

    def _publish(self, **changes: Any) -> None:
        self._status = replace(self._status, agent_rss_bytes=rss_bytes(), **changes)
        try:
            write_status(self._status_path, self._status)
        except StorageError as error:
            logger.warning("%s", error)
        self._notifier.status(headline(self._status))
