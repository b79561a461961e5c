# SPDX-License-Identifier: Apache-2.0
"""Memory and CPU time of other processes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

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
say()
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

    def step(self) -> None:
        print(file=self.process.stdin, flush=True)
        self._await()

    def _await(self) -> None:
        assert self.process.stdout
        self.process.stdout.readline()


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
    subject.step()
    assert 0.25 < cpu_s(pid) - before_s < 1.0
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
    before_s = cpu_s(subject.process.pid)
    time.sleep(0.2)
    assert cpu_s(subject.process.pid) - before_s < 0.01
