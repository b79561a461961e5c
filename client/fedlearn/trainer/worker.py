# SPDX-License-Identifier: Apache-2.0
"""The trainer process: takes jobs on its standard input, answers on its standard output.

The agent starts it for a round and it ends by itself when no job has come for a while, so NumPy
and the runtime are in memory only while they are needed. It is also what the kernel kills first
when memory runs out; the agent lives on and reports it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from fedlearn.trainer.lean import import_lean

if __name__ == "__main__":
    import_lean()

import numpy as np

from fedlearn.dataset import Dataset
from fedlearn.durable import write_durably
from fedlearn.errors import FedlearnError, ModelError
from fedlearn.jobs import Done, Failed, JobMessage, PatchJob, Progress, TrainJob, receive, send
from fedlearn.model import Model
from fedlearn.trainer.budget import choose
from fedlearn.trainer.order import device_seed
from fedlearn.trainer.training import train
from fedlearn.wire import codec
from fedlearn.wire.delta import apply_difference, encode_delta
from fedlearn.wire.messages import (
    MAX_MODEL_BYTES,
    Difference,
    EncodedTensor,
    Metrics,
    Update,
)

# The kernel adds this (of 1000) to the process's badness: it goes before anything of the system.
_OOM_SCORE_ADJ = 800
# A sign of life at most this often: enough for a progress bar and a watchdog.
_PROGRESS_EVERY_S = 1.0


def main(linger_s: float) -> int:
    """Serve jobs until the input ends or none has come for `linger_s` seconds."""
    _volunteer_for_the_oom_killer()
    jobs, replies = _take_streams()
    while _has_input(jobs, linger_s):
        job = receive(jobs)
        if job is None:
            break
        try:
            send(replies, _run(job, replies))
        except FedlearnError as error:
            send(replies, Failed(error.message, error.hint))
        except MemoryError:
            hint = "train a shorter tail or use smaller batches"
            send(replies, Failed("out of memory", hint, out_of_memory=True))
        except BrokenPipeError:
            break
        except Exception as error:  # a fault of ours: the aggregator should hear which
            sys.excepthook(*sys.exc_info())
            send(replies, Failed(f"{type(error).__name__}: {error}", "please report this"))
    return 0


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes of the protocol; what a library prints goes to stderr instead."""
    jobs = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return jobs, replies


def _has_input(jobs: BinaryIO, linger_s: float) -> bool:
    return bool(select.select([jobs], [], [], linger_s)[0])


def _volunteer_for_the_oom_killer() -> None:
    with contextlib.suppress(OSError):  # a kernel without it, or a sandbox that forbids it
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE_ADJ), encoding="ascii")


def _run(job: JobMessage, replies: BinaryIO) -> Done:
    if isinstance(job, PatchJob):
        return _patch(job)
    if isinstance(job, TrainJob):
        return _train(job, replies)
    raise FedlearnError(f"{type(job).__name__} is no job")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def _patch(job: PatchJob) -> Done:
    base = _read(job.base_path)
    difference = codec.decode(Difference, job.difference, max_bytes=MAX_MODEL_BYTES)
    data = apply_difference(base, difference.encoding, difference.data)
    if Model.parse(data).digest != job.target:
        raise ModelError("the difference does not lead to the model that was announced")
    write_durably(Path(job.target_path), data)
    return Done(b"", 0, 0.0, peak_rss_bytes())


def _train(job: TrainJob, replies: BinaryIO) -> Done:
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    model = Model.parse(_read(job.model_path))
    if model.digest != job.model:
        raise ModelError("the model on disk is not the round's", hint="it is fetched again")
    told_s = start_s

    def tell(_epoch: int, done: float, _loss: float) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _PROGRESS_EVERY_S:
            told_s = time.monotonic()
            send(replies, Progress(done))

    dataset = Dataset.load(job.data_path, model, job.plan.loss)
    # From here on it depends on the plan and the budget how much memory is needed.
    send(replies, Progress(0.0, rss_bytes()))
    tensors: Collection[int] = job.tensors
    choice: tuple[str, ...] = ()
    if job.budget_kib:
        samples = min(len(dataset), job.max_samples)
        chosen = choose(model, job.plan, job.budget_kib, samples, job.tensors)
        tensors, choice = [tensor.index for tensor in chosen.tensors], chosen.reasons
    training = train(
        model,
        tensors,
        dataset,
        job.plan,
        seed=device_seed(job.seed, job.device),
        max_samples=job.max_samples,
        personal_epochs=job.personal_epochs or None,
        progress=tell,
    )
    personal = training.personal
    if personal is not None:
        write_durably(Path(job.personal_path), model.patched(personal.values))
    encoded = []
    for index, values in sorted(training.values.items()):
        encoding, data = encode_delta(np.subtract(values, model.array(index), dtype=np.int32))
        encoded.append(EncodedTensor(index, int(encoding), data))
    train_s = time.monotonic() - start_s
    metrics = Metrics(
        loss_before=training.before.loss,
        loss_after=training.after.loss,
        accuracy_before=training.before.accuracy,
        accuracy_after=training.after.accuracy,
        train_s=train_s,
        cpu_s=time.process_time() - start_cpu_s,
        peak_rss_bytes=peak_rss_bytes(),
        accuracy_personal=personal.quality.accuracy if personal else None,
    )
    update = Update(
        task=job.task,
        round=job.round,
        model=job.model,
        device=job.device,
        samples=training.samples,
        metrics=metrics,
        tensors=tuple(encoded),
        ranges=training.ranges,
    )
    return Done(
        codec.encode(update),
        training.samples,
        train_s,
        metrics.peak_rss_bytes,
        metrics.accuracy_before,
        metrics.accuracy_personal,
        training.before.loss,
        personal.quality.loss if personal else None,
        choice,
        training.unpinned,
    )


def rss_bytes() -> int:
    """The resident size of this program now; 0 where there is no procfs."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def peak_rss_bytes() -> int:
    """The largest resident size this program had.

    VmHWM and not ru_maxrss, which a child inherits from the process that started it.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no procfs: the coarser figure will do
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    # `--linger-s SECONDS` is all there is; argparse would be half a megabyte for it.
    sys.exit(main(linger_s=float(sys.argv[2])))
