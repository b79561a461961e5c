# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn import jobs
from fedlearn.agent.stop import Stopped, StopSignal
from fedlearn.agent.trainer_process import TrainerProcess
from fedlearn.config import TrainingConfig
from fedlearn.dataset import Dataset
from fedlearn.errors import TrainerError, TrainerMemoryError
from fedlearn.jobs import Done, PatchJob, TrainJob
from fedlearn.model import Model
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.wire import codec
from fedlearn.wire.messages import (
    MAX_MODEL_BYTES,
    Difference,
    Encoding,
    TrainingPlan,
    Update,
)

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
JOB = TrainJob(
    task="digits",
    device="board",
    round=3,
    model=bytes(32),
    model_path="model",
    data_path="data",
    seed=1,
    tensors=(1, 2),
    plan=TrainingPlan("softmax_cross_entropy", 1, 8, 0.1),
    max_samples=100,
)


class Bench:
    """A trainer with a fake worker, and what its workers left behind."""

    def __init__(self, path: Path) -> None:
        self.started = path / "started"
        self.stop = StopSignal()

    def trainer(self, mode: str = "train", linger_s: float = 30.0) -> TrainerProcess:
        command = (*FAKE, f"--started={self.started}", f"--mode={mode}")
        return TrainerProcess(TrainingConfig(threads=3, linger_s=linger_s), self.stop, command)

    def wait_for_start(self) -> None:
        deadline = time.monotonic() + 30
        while not self.started.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def starts(self) -> list[list[str]]:
        return [line.split() for line in self.started.read_text().splitlines()]


def children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(pid) for path in tasks for pid in path.read_text().split()]


def run(trainer: TrainerProcess, seconds: float = 8.0) -> Done:
    return trainer.run(JOB, time.monotonic() + seconds)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_worker_serves_several_jobs(bench: Bench) -> None:
    trainer = bench.trainer()
    seen: list[float | str] = []
    deadline = time.monotonic() + 8
    done = trainer.run(JOB, deadline, on_sent=lambda: seen.append("sent"), on_progress=seen.append)
    assert codec.decode(Update, done.body, max_bytes=10_000).round == 3
    assert seen == ["sent", 0.5]
    run(trainer)
    ((pid, threads),) = bench.starts()
    assert threads == "3"
    trainer.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_that_ended_is_replaced(bench: Bench) -> None:
    trainer = bench.trainer("one")
    for _ in range(3):
        run(trainer)
    assert len(bench.starts()) == 3
    trainer.close()


def test_a_worker_whose_time_is_over_leaves_no_zombie(bench: Bench) -> None:
    trainer = bench.trainer("one")
    run(trainer)
    ((pid, _),) = bench.starts()
    deadline = time.monotonic() + 8
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        trainer.reap()
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_that_ends_during_a_wait_is_buried_at_once(bench: Bench) -> None:
    trainer = bench.trainer("one")
    run(trainer)
    ((pid, _),) = bench.starts()

    def ask() -> None:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        bench.stop.request()

    threading.Thread(target=ask).start()
    with pytest.raises(Stopped):  # it waited on
        trainer.wait(30)
    assert not Path(f"/proc/{pid}").exists()


def test_a_wait_lasts_as_long_as_it_should(bench: Bench) -> None:
    for trainer in (bench.trainer(), bench.trainer("one")):
        run(trainer)
        start = time.monotonic()
        trainer.wait(0.5)
        assert time.monotonic() - start >= 0.5
        trainer.close()
    # Control: a worker that still lingers is not ended by the wait.
    trainer = bench.trainer()
    run(trainer)
    trainer.wait(0.1)
    run(trainer)
    trainer.close()
    assert len(bench.starts()) == 3


def test_a_worker_that_does_not_read_does_not_hold_the_agent(bench: Bench) -> None:
    """A pipe takes 64 KiB; the rest of the job would wait for ever."""
    trainer = TrainerProcess(
        TrainingConfig(), bench.stop, [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    job = PatchJob("base", bytes(1 << 20), "target", bytes(32))
    with pytest.raises(TrainerError, match="did not take its job"):
        trainer.run(job, time.monotonic() + 0.5)
    threading.Timer(0.3, bench.stop.request).start()
    with pytest.raises(Stopped):
        trainer.run(job, time.monotonic() + 60)


def test_a_job_larger_than_the_pipe_arrives_whole(bench: Bench) -> None:
    trainer = bench.trainer()
    data = os.urandom(200_000)
    difference = codec.encode(Difference(bytes(32), bytes(32), Encoding.CODES, data))
    target = bench.started.with_name("target")
    digest = hashlib.sha256(data * 1000).digest()
    trainer.run(PatchJob("base", difference, str(target), digest), time.monotonic() + 30)
    trainer.close()


def test_a_job_may_carry_a_difference_as_large_as_the_model() -> None:
    job = PatchJob("a" * 4096, bytes(MAX_MODEL_BYTES), "b" * 4096, bytes(32))
    stream = io.BytesIO()
    jobs.send(stream, job)
    stream.seek(0)
    assert jobs.receive(stream) == job
    too_large = PatchJob("a", bytes(jobs.MAX_JOB_BYTES), "b", bytes(32))  # the control
    stream.seek(0)
    jobs.send(stream, too_large)
    stream.seek(0)
    with pytest.raises(ValueError, match="job message"):
        jobs.receive(stream)


@pytest.mark.parametrize(
    ("mode", "complaint"),
    [
        ("kill", "killed, probably because memory ran out"),
        ("exit", "exit code 3"),
        ("garbage", "no message"),
        ("fail", r"does not fit the model \(check data.path\)"),
    ],
)
def test_deaths_and_failures_are_named(bench: Bench, mode: str, complaint: str) -> None:
    trainer = bench.trainer(mode)
    with pytest.raises(TrainerError, match=complaint):
        run(trainer)
    trainer.close()


LIMITED = """
import resource, sys
from pathlib import Path
from fedlearn.trainer import worker  # all that the program needs beside the training is there
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (100 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(worker.main(float(sys.argv[2])))
"""


def test_a_real_training_without_memory_fails_alone_and_trains_within_an_allowance(
    bench: Bench, tmp_path: Path, digits: Model, digits_train: Dataset
) -> None:
    model, data = tmp_path / "model.tflite", tmp_path / "data.npz"
    model.write_bytes(digits.data)
    np.savez(data, x=digits_train.inputs, y=digits_train.labels)
    job = replace(
        JOB,
        model=digits.digest,
        model_path=str(model),
        data_path=str(data),
        tensors=tuple(each.index for each in trainable_tensors(digits, "all")),
        plan=replace(JOB.plan, batch_size=4000),
        max_samples=4000,
    )
    trainer = TrainerProcess(TrainingConfig(), bench.stop, [sys.executable, "-c", LIMITED])
    with pytest.raises(TrainerMemoryError, match="out of memory") as caught:
        trainer.run(job, time.monotonic() + 60)
    assert caught.value.need_kib > 1000
    assert children() == []  # what it still held is free
    small = replace(job, budget_kib=10_000)  # the control: this much there is
    assert trainer.run(small, time.monotonic() + 60).samples == 4000
    trainer.close()


def test_the_deadline_ends_the_job_and_the_worker(bench: Bench) -> None:
    trainer = bench.trainer("hang")
    with pytest.raises(TrainerError, match="before the round's deadline"):
        run(trainer, 1)
    assert children() == []


def test_a_stop_ends_the_job_and_the_worker(bench: Bench) -> None:
    trainer = bench.trainer("hang")
    requested: list[float] = []

    def request() -> None:
        bench.wait_for_start()
        requested.append(time.monotonic())
        bench.stop.request()

    threading.Thread(target=request).start()
    with pytest.raises(Stopped):
        run(trainer, 60)
    assert time.monotonic() - requested[0] < 5
    ((pid, _),) = bench.starts()
    assert not Path(f"/proc/{pid}").exists()


def test_the_kernel_would_kill_the_trainer_first(bench: Bench) -> None:
    """The real worker, as the kernel sees it."""
    trainer = TrainerProcess(TrainingConfig(linger_s=30), bench.stop)
    with pytest.raises(TrainerError, match="cannot read model"):
        run(trainer, 60)
    (worker,) = children()
    assert int(Path(f"/proc/{worker}/oom_score_adj").read_text()) == 800
    assert int(Path("/proc/self/oom_score_adj").read_text()) < 800  # the control: not inherited
    trainer.close()
    assert children() == []


def test_a_worker_that_cannot_start(bench: Bench) -> None:
    trainer = TrainerProcess(TrainingConfig(), bench.stop, ["/does/not/exist"])
    with pytest.raises(TrainerError, match="cannot start the trainer"):
        run(trainer)


def test_many_jobs_leave_no_open_files(bench: Bench) -> None:
    trainer = bench.trainer("one")
    run(trainer)
    trainer.close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        run(trainer)
        trainer.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
