# SPDX-License-Identifier: Apache-2.0
"""An agent process, and an aggregator that does what the test says."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlearn.wire import codec
from fedlearn.wire.messages import (
    CheckIn,
    Difference,
    Encoding,
    Limits,
    Receipt,
    TaskDescriptor,
    TrainingPlan,
    TrainOrder,
    Wait,
)

from .scripted import CBOR, Request, Server, answer, message

# The fake trainer rebuilds a model by repeating a difference of PERIOD bytes.
MODELS = [b"first model" * 1000, b"other model" * 1000]
PERIOD = len("first model")
DIGESTS = [hashlib.sha256(model).digest() for model in MODELS]


def order(number: int, model: int = 0, deadline_s: float = 60.0) -> TrainOrder:
    return TrainOrder(
        round=number,
        model=DIGESTS[model],
        model_bytes=len(MODELS[model]),
        seed=7,
        deadline_s=deadline_s,
        tensors=(1, 2),
        plan=TrainingPlan("softmax_cross_entropy", 1, 8, 0.1),
        limits=Limits(10_000, 100),
    )


class Aggregator:
    """Answers check-ins with `replies`, one after the other, then holds them."""

    def __init__(self, *replies: TrainOrder | Wait) -> None:
        self.replies = list(replies)
        self.task = "digits"
        self.receipts: list[bytes | None] = []  # for the next updates; then they are stored
        self.release = threading.Event()
        self.models = MODELS
        self.before_update: Callable[[], None] = lambda: None

    def __call__(self, request: Request) -> bytes | None:
        if request.method == "POST":
            check_in = codec.decode(CheckIn, request.body, max_bytes=1000)
            if check_in.failure is not None:
                return message(Wait(0.1, "you gave your seat back"))
            if self.replies:
                return message(self.replies.pop(0))
            self.release.wait(30)
            return None
        if request.method == "PUT":
            self.before_update()
            number = int(request.path.split("/")[3])
            return self.receipts.pop(0) if self.receipts else message(Receipt(number, False), 201)
        if request.path == "/v1/task":
            first = order(1)
            return message(
                TaskDescriptor(
                    *(self.task, 1, "open", first.model, first.model_bytes, 1),
                    *((), first.plan, first.limits),
                )
            )
        digest = bytes.fromhex(request.path.split("/")[3].partition("?")[0])
        model = self.models[DIGESTS.index(digest)]
        if "?from=" in request.path:
            base = bytes.fromhex(request.path.partition("?from=")[2])
            difference = Difference(base, digest, Encoding.INT8, model[:PERIOD])
            return answer(200, codec.encode(difference), CBOR)
        return answer(200, model)


class Device:
    """A directory with a configuration, and the agents that run on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.processes: list[subprocess.Popen[bytes]] = []
        self.root = Path("/")  # of sysfs and procfs
        (path / "data.npz").touch()

    def start(
        self,
        *,
        port: int = 0,
        task: str = "digits",
        mode: str = "train",
        data: str = "data.npz",
        more: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        where = f'url = "http://127.0.0.1:{port}"' if port else 'interfaces = ["127.0.0.1"]'
        (self.path / "device.toml").write_text(
            f'[device]\nname = "board"\nstate_dir = "state"\nruntime_dir = "run"\n'
            f'[aggregator]\ntask = "{task}"\ninsecure = true\n{where}\n'
            f'[data]\npath = "{data}"\n{more}'
        )
        program = Path(__file__).with_name("run_agent.py")
        with (self.path / "log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-X",
                        "faulthandler",
                        program,
                        "device.toml",
                        mode,
                        "modules",
                        str(self.root),
                    ],
                    cwd=self.path,
                    env={**os.environ, **(environment or {})},
                    stderr=log,
                )
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        process = self.processes[-1]
        process.send_signal(number)
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler writes to the log where it hangs
            process.wait(30)
            raise AssertionError(f"the agent does not stop:\n{self.log[-4000:]}") from None

    @property
    def log(self) -> str:
        return (self.path / "log").read_text()

    def status(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.path / "run/status.json").read_text())
        return values

    @property
    def workers(self) -> list[int]:
        pid = self.processes[-1].pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 8
        while not condition():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def wait_for_state(self, state: str) -> dict[str, Any]:
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            if (self.path / "run/status.json").exists() and self.status()["state"] == state:
                return self.status()
            time.sleep(0.02)
        raise AssertionError(f"never {state}: {self.log}")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path)
    yield device
    for process in device.processes:
        process.kill()
        process.wait()


def puts(request: Request) -> bool:
    return request.method == "PUT"


def held(server: Server, check_ins: int) -> None:
    """Wait for the check-in that the aggregator holds."""
    server.wait_for(lambda each: each.path == "/v1/checkin", check_ins)
