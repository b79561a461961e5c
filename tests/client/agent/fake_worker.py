# SPDX-License-Identifier: Apache-2.0
"""A trainer process for tests: speaks `fedlearn.jobs`, trains nothing, fails on demand."""

from __future__ import annotations

import argparse
import hashlib
import os
import select
import signal
import sys
import time
from pathlib import Path

from fedlearn import jobs
from fedlearn.agent.status import rss_bytes
from fedlearn.jobs import Done, Failed, PatchJob, Progress, TrainJob
from fedlearn.wire import codec
from fedlearn.wire.messages import Difference, Metrics, Update

# What the mode "hungry" takes, unless it may need less than a third of it: then it trains.
HUNGRY_KIB = 80_000
METRICS = Metrics(1.0, 0.5, 0.0, 0.0, 12_345_678, 0.5, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="train")
    parser.add_argument("--started", type=Path)  # gets a line for each start
    parser.add_argument("--linger-s", type=float, required=True)
    options = parser.parse_args()
    if options.started:
        with options.started.open("a") as stream:
            stream.write(f"{os.getpid()} {os.environ['OPENBLAS_NUM_THREADS']}\n")
    stdin, replies = os.fdopen(0, "rb", buffering=0), sys.stdout.buffer
    while select.select([0], [], [], options.linger_s)[0]:
        job = jobs.receive(stdin)
        if job is None:
            return
        if options.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if options.mode == "exit":
            sys.exit(3)
        if options.mode == "garbage":
            replies.write(b"hello, world")
            replies.flush()
        if options.mode == "hang":
            time.sleep(60)
        if options.mode == "hungry" and isinstance(job, TrainJob):
            jobs.send(replies, Progress(0.0, rss_bytes()))
            if not 0 < job.budget_kib < HUNGRY_KIB / 3:
                bytearray(HUNGRY_KIB * 1024)
                os.kill(os.getpid(), signal.SIGKILL)
        if options.mode == "fail":
            jobs.send(replies, Failed("the data does not fit the model", "check data.path"))
        elif isinstance(job, PatchJob):
            difference = codec.decode(Difference, job.difference, max_bytes=1 << 20)
            model = difference.data * 1000
            assert hashlib.sha256(model).digest() == job.target
            Path(job.target_path).write_bytes(model)
            jobs.send(replies, Done(b"", 0, 0.0, 1))
        elif isinstance(job, TrainJob):
            jobs.send(replies, Progress(0.5))
            update = Update(job.task, job.round, job.model, job.device, 10, METRICS, ())
            jobs.send(replies, Done(codec.encode(update), 10, 0.0, METRICS.peak_rss_bytes))
        if options.mode == "one":
            return


if __name__ == "__main__":
    main()
