# SPDX-License-Identifier: Apache-2.0
"""No process outlives the nursery, however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fedlearn.errors import FedlearnError
from fedlearn_demo import process
from fedlearn_demo.meter import child_pids, memory
from fedlearn_demo.process import Nursery

PYTHON = [sys.executable, "-S", "-c"]
SLEEPER = [*PYTHON, "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    *PYTHON,
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('up', flush=True); time.sleep(60)",
]
# Its child leads a process group of its own, as the agent's trainer does.
PARENT = [
    *PYTHON,
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'],"
    " process_group=0)\n"
    "print('up', flush=True); time.sleep(60)",
]
OWNER = f"""
import sys, time
from pathlib import Path
from fedlearn_demo.process import Nursery
with Nursery() as nursery:
    child = nursery.start("a child", {SLEEPER!r}, Path(sys.argv[1]))
    print(child.pid, flush=True)
    time.sleep(60)
"""


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.01)


def is_up(log: Path) -> bool:
    return log.exists() and "up" in log.read_text()


@pytest.mark.parametrize("command", [SLEEPER, PARENT], ids=["child", "grandchild"])
def test_children_are_gone_afterwards(tmp_path: Path, command: list[str]) -> None:
    log = tmp_path / "log"
    with Nursery() as nursery:
        child = nursery.start("a child", command, log)
        until(lambda: is_up(log))
        family = [child.pid, *child_pids(child.pid)]
        assert len(family) == (2 if command is PARENT else 1)
        assert all(memory(pid) for pid in family)
    until(lambda: not any(memory(pid) for pid in family))


def test_what_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STOP_GRACE_S", 0.3)
    log = tmp_path / "log"
    with Nursery() as nursery:
        child = nursery.start("a child", STUBBORN, log)
        until(lambda: is_up(log))
    assert child.process.returncode == -signal.SIGKILL


def test_children_are_gone_after_an_exception(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), Nursery() as nursery:
        child = nursery.start("a child", SLEEPER, tmp_path / "log")
        raise KeyboardInterrupt
    assert child.process.returncode is not None


def test_child_dies_with_a_killed_owner(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path / "log"], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout
        pid = int(owner.stdout.readline())
        until(lambda: is_up(tmp_path / "log"))
        assert memory(pid)
        owner.kill()
    until(lambda: memory(pid) is None)


def test_control_other_children_survive_a_killed_owner() -> None:
    code = f"import subprocess, time\nprint(subprocess.Popen({SLEEPER!r},\n"
    code += "stdout=subprocess.DEVNULL).pid, flush=True); time.sleep(60)"
    with subprocess.Popen([*PYTHON, code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        pid = int(owner.stdout.readline())
        owner.kill()
    try:
        time.sleep(0.2)  # as long as the test above may take
        assert memory(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_check_names_who_ended_and_why(tmp_path: Path) -> None:
    with Nursery() as nursery:
        nursery.start("a child", SLEEPER, tmp_path / "healthy")
        nursery.check()
        child = nursery.start(
            "device-07", [*PYTHON, "raise SystemExit('no such model')"], tmp_path / "log"
        )
        until(lambda: child.ended)
        with pytest.raises(FedlearnError, match="device-07 ended unexpectedly: no such model"):
            nursery.check()
