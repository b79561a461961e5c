# SPDX-License-Identifier: Apache-2.0
"""A request to stop reaches the agent wherever its signal comes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from fedlearn.agent.stop import Stopped, StopSignal

LONG_S = 20.0


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    """An installed one; afterwards the signals are as they were."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    wakeup = signal.set_wakeup_fd(-1)
    made = StopSignal()
    made.install()
    yield made
    signal.set_wakeup_fd(wakeup)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def send_later() -> None:
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)


def waited_s(stop: StopSignal) -> float:
    began = time.monotonic()
    with pytest.raises(Stopped):
        stop.wait(LONG_S)
    return time.monotonic() - began


def test_a_signal_ends_a_wait(stop: StopSignal) -> None:
    threading.Thread(target=send_later).start()
    assert waited_s(stop) < LONG_S / 2


def test_a_signal_that_does_not_interrupt_the_call_ends_it_too(stop: StopSignal) -> None:
    """As one between the last Python instruction and the system call: only C code sees it.

    Here another thread takes the signal, so that the call of this one is not interrupted, either.
    """
    sender = threading.Thread(target=send_later)
    sender.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        assert waited_s(stop) < LONG_S / 2
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        sender.join()


def test_another_signal_ends_nothing(stop: StopSignal) -> None:
    """It wakes the wait as well, which goes on, and does not spin."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        began, began_cpu = time.monotonic(), time.process_time()
        assert not stop.wait(1.0)
        assert time.monotonic() - began >= 1.0
        assert time.process_time() - began_cpu < 0.5
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_request_stays(stop: StopSignal) -> None:
    stop.request()
    for _ in range(2):
        assert waited_s(stop) < 1
    assert stop.signal is None
