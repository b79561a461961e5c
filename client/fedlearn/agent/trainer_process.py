# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the trainer process.

Training needs NumPy, the runtime and perhaps more memory than there is. So it runs in a child: when
that dies the agent lives, says why, and starts another for the next job.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from fedlearn import jobs
from fedlearn.agent import sensors
from fedlearn.agent.stop import HasFileno, Interruption, StopSignal
from fedlearn.config import TrainingConfig
from fedlearn.errors import FedlearnError, TrainerError, TrainerMemoryError
from fedlearn.jobs import Done, Failed, PatchJob, Progress, TrainJob

# Isolated: a file numpy.py where the agent was started, or in PYTHONPATH, is nothing to import.
WORKER = (sys.executable, "-I", "-m", "fedlearn.trainer.worker")
# Each of these libraries would otherwise start a thread for every core.
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
_END_TIMEOUT_S = 0.5  # a worker that is told to end has nothing to save
# Training is nothing that the board's own work, or the agent, should wait for.
_NICENESS = 10


class TrainerProcess:
    """Runs jobs, one at a time, in a worker that it starts when there is none."""

    def __init__(
        self,
        config: TrainingConfig,
        stop: StopSignal,
        command: Sequence[str] = WORKER,
        root: Path = sensors.ROOT,
    ) -> None:
        self._command = [*command, "--linger-s", str(config.linger_s)]
        self._environment = {name: str(config.threads) for name in _THREAD_VARIABLES}
        self._stop = stop
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self,
        job: PatchJob | TrainJob,
        deadline: float,
        *,
        on_sent: Callable[[], None] = lambda: None,
        on_progress: Callable[[float], None] = lambda done: None,
    ) -> Done:
        """Run one job until `deadline` of `time.monotonic()`; `on_progress` gets a share of 0..1.

        Raises `TrainerError` when the job fails, the worker dies or the deadline passes;
        `TrainerMemoryError` when that was for want of memory; and what `StopSignal.wait` does.
        """
        self.reap()
        reused = self._process is not None
        process = self._process or self._start()
        oom_kills, program_kib = sensors.oom_kills(self._root), 0
        try:
            jobs.send(cast(BinaryIO, self._pipe(process.stdin, deadline)), job)
            on_sent()
            while isinstance(reply := self._receive(process, deadline), Progress):
                program_kib = program_kib or reply.rss_bytes // 1024
                on_progress(reply.done)
        except BrokenPipeError:
            reply = None
        except BaseException:
            self.close()  # an answer that still comes would be taken for the next job's
            raise
        if isinstance(reply, Done):
            return reply
        if isinstance(reply, Failed) and reply.out_of_memory:
            self.close()  # what it still holds may be in the way of the next one
            raise TrainerMemoryError(reply.error, hint=reply.hint, need_kib=_need_kib(program_kib))
        if isinstance(reply, Failed):
            raise TrainerError(reply.error, hint=reply.hint)
        self._stop.check()
        code = self.close(kill=False)
        if reused and code == 0:  # its time to linger was over just as the job came
            return self.run(job, deadline, on_sent=on_sent, on_progress=on_progress)
        if code == -signal.SIGKILL:
            raise self._killed(oom_kills, program_kib)
        raise TrainerError(_cause_of_death(code))

    def _killed(self, oom_kills: int | None, program_kib: int) -> TrainerError:
        """By the kernel for memory, unless its count of such kills says that it was not."""
        now = sensors.oom_kills(self._root)
        if oom_kills is None or now is None:
            words = "the trainer was killed, probably because memory ran out"
        elif now > oom_kills:
            words = "the kernel killed the trainer because memory ran out"
        else:
            return TrainerError("the trainer was killed, and not by the kernel for its memory")
        return TrainerMemoryError(words, need_kib=_need_kib(program_kib))

    def wait(self, timeout_s: float) -> None:
        """Wait, and meanwhile take note of a worker whose time is over. Raises `Stopped`."""
        until = time.monotonic() + timeout_s
        # A worker without a job says nothing: what can be read is the end of the pipe.
        if self._process is not None and self._stop.wait(
            timeout_s, cast(HasFileno, self._process.stdout)
        ):
            self.close(kill=False)
        self._stop.wait(max(0.0, until - time.monotonic()))

    def reap(self) -> None:
        """Take note of a worker that has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            self.close()

    def close(self, *, kill: bool = True) -> int:
        """End the worker, if there is one; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(BrokenPipeError), process:  # closes the pipes
            if kill:
                process.terminate()
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        self._stop.check()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, **self._environment},
                process_group=0,  # Ctrl-C in a terminal is for the agent, which ends the worker
            )
        except OSError as error:
            raise TrainerError(f"cannot start the trainer: {error.strerror}") from error
        # A worker that is stuck does not read: then a write must not block.
        os.set_blocking(cast(HasFileno, self._process.stdin).fileno(), False)
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)
        return self._process

    def _receive(self, process: subprocess.Popen[bytes], deadline: float) -> object:
        try:
            return jobs.receive(cast(BinaryIO, self._pipe(process.stdout, deadline)))
        except (Interruption, FedlearnError):
            raise
        except Exception as error:  # whatever CBOR makes of bytes that are none
            raise TrainerError(f"the trainer wrote what is no message: {error}") from error

    def _pipe(self, pipe: object, deadline: float) -> _Pipe:
        return _Pipe(cast(HasFileno, pipe), self._stop, deadline)


class _Pipe:
    """Reads or writes exactly as much as asked for, up to the deadline or a stop request."""

    def __init__(self, pipe: HasFileno, stop: StopSignal, deadline: float) -> None:
        self._pipe = pipe
        self._stop = stop
        self._deadline = deadline

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if not self._stop.wait(self._left_s(), self._pipe):
                raise TrainerError("the training did not end before the round's deadline")
            chunk = os.read(self._pipe.fileno(), size - len(data))
            if not chunk:
                break
            data += chunk
        return bytes(data)

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            if not self._stop.wait(self._left_s(), writable=[self._pipe]):
                raise TrainerError("the trainer did not take its job before the round's deadline")
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(self._pipe.fileno(), left) :]

    def flush(self) -> None:
        """Nothing is held back."""

    def _left_s(self) -> float:
        return max(0.0, self._deadline - time.monotonic())


def _need_kib(program_kib: int) -> int:
    """What a trainer that was just buried had taken beside the program; 0 if that is not known.

    The kernel tells the peak of the largest of all children, which is a trainer. That may have been
    an earlier one: then an allowance comes out too large, and smaller the next time.
    """
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(0, peak_kib - program_kib) if program_kib else 0


def _cause_of_death(code: int) -> str:
    if code < 0:
        return f"the trainer died of signal {-code} ({signal.strsignal(-code)})"
    return f"the trainer ended without an answer, exit code {code}"
