# SPDX-License-Identifier: Apache-2.0
"""Memory and CPU time of other processes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn_demo import idle
from fedlearn_demo.meter import Meter, child_pids, cpu_s, memory

MB = 1_000_000
# On each line of input: more memory, then more CPU time, then a child with memory of its own.
PROGRAM = """
import subprocess, sys, time
def say(): print("ok", flush=True); sys.stdin.readline()
say()
big = bytes(range(250)) * 200_000
say()
del big
end = time.process_time() + 0.3
while time.process_time() < end: pass
print(time.process_time(), flush=True)
sys.stdin.readline()
child = subprocess.Popen([sys.executable, "-S", "-c",
    "big = bytes(range(250)) * 200_000; print('ok', flush=True); input()"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
say()
child.communicate(b"\\n")
say()
"""


class Subject:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._await()

    def step(self) -> str:
        print(file=self.process.stdin, flush=True)
        return self._await()

    def _await(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


@pytest.fixture
def subject() -> Iterator[Subject]:
    subject = Subject()
    yield subject
    subject.process.kill()
    subject.process.communicate()


def test_meter_follows_the_tree(subject: Subject) -> None:
    pid = subject.process.pid
    meter = Meter(pid)
    meter.sample()
    small = meter.peak_bytes
    subject.step()
    now = memory(pid)
    assert now
    assert now.rss_bytes > small + 45 * MB
    before_s = cpu_s(pid)
    # The process's own account is the oracle: between the two it only prints.
    own_s = float(subject.step())
    assert before_s + 0.3 < own_s <= cpu_s(pid) < own_s + 0.1
    meter.sample()
    # No sample was taken while the memory was in use: the kernel's peak knows of it.
    assert meter.sampled_peak_bytes < small + 20 * MB
    assert meter.peak_bytes > small + 45 * MB
    assert not child_pids(pid)
    subject.step()
    assert not meter.idle
    assert len(child_pids(pid)) == 1
    meter.sample()
    assert meter.sampled_peak_bytes > small + 45 * MB
    assert meter.peak_bytes > small + 90 * MB
    subject.step()
    assert meter.idle


def test_ended_process_has_no_memory(subject: Subject) -> None:
    pid = subject.process.pid
    subject.process.kill()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert memory(pid) is None  # a zombie
    subject.process.communicate()
    assert memory(pid) is None
    assert child_pids(pid) == []


def test_idle_process_costs_nothing(subject: Subject) -> None:
    pid = subject.process.pid
    # Once it is asleep. It has told us that it is there, and then reads.
    give_up = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < give_up
        time.sleep(0.01)
    before_s = cpu_s(pid)
    time.sleep(0.2)
    assert cpu_s(pid) == before_s


def test_the_idle_figures_are_those_of_the_agents(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "MEASURE_S", 0.3)
    meter = Meter(subject.process.pid)
    found = idle.measure_idle([meter], lambda: time.sleep(0.01))
    assert found.cpu_percent < 1
    assert found.rss_bytes > MB
    # Control: one that is busy is seen, and halves with an idle one beside it.
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as busy:
        both = idle.measure_idle([Meter(busy.pid), meter], lambda: time.sleep(0.01))
        busy.kill()
    assert 1 < both.cpu_percent <= 55
