# SPDX-License-Identifier: Apache-2.0
"""The trainer process by its pipes: jobs in, updates out, and it ends when it should."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest

from fedlearn.dataset import Dataset
from fedlearn.jobs import Done, Failed, JobMessage, PatchJob, Progress, TrainJob, receive, send
from fedlearn.model import Model
from fedlearn.trainer.budget import measure
from fedlearn.trainer.order import device_seed
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.trainer.training import train
from fedlearn.wire import codec
from fedlearn.wire.delta import decode_delta, encode_difference
from fedlearn.wire.messages import Difference, TrainingPlan, Update

PLAN = TrainingPlan("softmax_cross_entropy", epochs=1, batch_size=16, learning_rate=0.05)


class Worker:
    """A real trainer process."""

    def __init__(self, linger_s: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedlearn.trainer.worker", "--linger-s", str(linger_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, job: JobMessage) -> JobMessage | None:
        send(cast(BinaryIO, self.process.stdin), job)
        while isinstance(reply := receive(cast(BinaryIO, self.process.stdout)), Progress):
            assert 0 <= reply.done <= 1
        return reply


@pytest.fixture
def worker() -> Iterator[Worker]:
    started = Worker(linger_s=30.0)
    with started.process:
        yield started
        started.process.kill()


@pytest.fixture
def job(tmp_path: Path, digits: Model, digits_train: Dataset) -> TrainJob:
    model, data = tmp_path / "model.tflite", tmp_path / "data.npz"
    model.write_bytes(digits.data)
    np.savez_compressed(data, x=digits_train.inputs[:300], y=digits_train.labels[:300])
    return TrainJob(
        task="digits",
        device="pump-7",
        round=3,
        model=digits.digest,
        model_path=str(model),
        data_path=str(data),
        seed=2**63 + 5,
        tensors=tuple(tensor.index for tensor in trainable_tensors(digits, "all")),
        plan=PLAN,
        max_samples=1000,
    )


def test_the_update_holds_what_training_gives(
    worker: Worker, job: TrainJob, digits: Model, digits_train: Dataset
) -> None:
    done = worker.run(job)
    assert isinstance(done, Done)
    update = codec.decode(Update, done.body, max_bytes=100_000)
    assert (update.task, update.device, update.round) == ("digits", "pump-7", 3)
    assert update.model == digits.digest
    assert update.samples == done.samples == 300
    assert update.metrics.loss_after < update.metrics.loss_before
    assert 20e6 < done.peak_rss_bytes < 200e6
    # The same training in this process, from its own decoded delta.
    few = Dataset(digits_train.inputs[:300], digits_train.labels[:300])
    seed = device_seed(job.seed, job.device)
    expected = train(digits, job.tensors, few, PLAN, seed=seed).values
    assert [tensor.index for tensor in update.tensors] == sorted(expected)
    for tensor in update.tensors:
        base = digits.array(tensor.index)
        delta = decode_delta(tensor.encoding, tensor.data, base.size, dtype=str(base.dtype))
        np.testing.assert_array_equal(base.ravel() + delta, expected[tensor.index].ravel())


def test_a_small_budget_trains_a_part(worker: Worker, job: TrainJob, digits: Model) -> None:
    last = [tensor.index for tensor in trainable_tensors(digits, "last")]
    # What is measured differs by some KiB from one process to another.
    budget = measure(digits, last, PLAN, 300).total + 64
    done = worker.run(replace(job, budget_kib=budget))
    assert isinstance(done, Done)
    trained = {tensor.index for tensor in codec.decode(Update, done.body, max_bytes=10**5).tensors}
    assert set(last) <= trained < set(job.tensors)
    none = worker.run(replace(job, budget_kib=1))
    assert isinstance(none, Failed)
    assert "nothing can be trained within 1 KiB" in none.error


def test_a_personal_copy_is_kept_beside_the_update(
    worker: Worker, job: TrainJob, digits: Model, tmp_path: Path
) -> None:
    path = tmp_path / "personal.tflite"
    plan = replace(PLAN, validation=0.3)
    plain = worker.run(replace(job, plan=plan))
    job = replace(job, plan=plan, personal_epochs=3, personal_path=str(path))
    done = worker.run(job)
    assert isinstance(plain, Done)
    assert isinstance(done, Done)
    updates = [codec.decode(Update, each.body, max_bytes=10**5) for each in (plain, done)]
    assert updates[0].tensors == updates[1].tensors, "the update is that of the round alone"
    assert plain.accuracy_personal is None
    assert done.accuracy is not None
    assert done.accuracy_personal is not None
    assert done.accuracy_personal > done.accuracy + 0.1
    assert updates[1].metrics.accuracy_personal == done.accuracy_personal
    personal = Model.parse(path.read_bytes())
    assert (personal.array(job.tensors[0]) != digits.array(job.tensors[0])).any()


def test_a_second_job_gives_the_same_bytes(worker: Worker, job: TrainJob) -> None:
    first, second = worker.run(job), worker.run(job)
    assert isinstance(first, Done)
    assert isinstance(second, Done)
    one, two = (codec.decode(Update, done.body, max_bytes=100_000) for done in (first, second))
    assert one.tensors == two.tensors


def test_failures_are_answers_and_the_worker_lives(worker: Worker, job: TrainJob) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"model_path": "/nowhere.tflite"}, "cannot read"),
        ({"data_path": "/nowhere.npz"}, "no data file"),
        ({"model": bytes(32)}, "not the round's"),
        ({"tensors": (0,)}, "none of the tensors"),
        ({"max_samples": 0}, "0 samples"),
        ({"plan": replace(PLAN, batch_size=0)}, "ZeroDivisionError"),  # a fault of ours is told too
    ]
    for change, reason in changes:
        reply = worker.run(replace(job, **change))
        assert isinstance(reply, Failed)
        assert reason in reply.error
    assert isinstance(worker.run(job), Done)


def test_a_difference_rebuilds_the_model(worker: Worker, job: TrainJob, tmp_path: Path) -> None:
    base = Path(job.model_path).read_bytes()
    model = Model.parse(base)
    weight = trainable_tensors(model, "last")[0].index
    target = model.patched({weight: (model.array(weight) // 2).astype(np.int8)})
    digest = Model.parse(target).digest
    encoding, data = encode_difference(base, target)
    body = codec.encode(Difference(model.digest, digest, int(encoding), data))
    out = tmp_path / "new.tflite"
    patch = PatchJob(job.model_path, body, str(out), digest)
    assert isinstance(worker.run(patch), Done)
    assert out.read_bytes() == target
    # Control: the same difference on another base is not taken for the model.
    out.unlink()
    Path(job.model_path).write_bytes(target)
    reply = worker.run(patch)
    assert isinstance(reply, Failed)
    assert not out.exists()


def test_it_ends_with_its_input(worker: Worker) -> None:
    cast(BinaryIO, worker.process.stdin).close()
    assert worker.process.wait(10) == 0


def test_it_ends_after_its_time_to_linger() -> None:
    started = Worker(linger_s=0.1)
    with started.process:
        assert started.process.wait(10) == 0
