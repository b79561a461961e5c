# SPDX-License-Identifier: Apache-2.0
"""The participant that keeps a round open, against a scripted aggregator."""

from __future__ import annotations

import threading
import time

import pytest

from fedlearn.agent.trust import Trust
from fedlearn.errors import NetworkError
from fedlearn.wire import codec
from fedlearn.wire.messages import CheckIn, Wait
from fedlearn_demo.bystander import Bystander
from tests.client.agent.scripted import Request, answer, message, serving
from tests.client.wire.examples import EXAMPLES

ORDER = EXAMPLES[3]


def until_seated(bystander: Bystander) -> None:
    give_up = time.monotonic() + 10
    while not bystander.seated():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_it_asks_until_it_has_a_seat_and_never_waits() -> None:
    release = threading.Event()
    replies = [Wait(0.0, "no free seat"), ORDER]

    def script(request: Request) -> bytes | None:
        release.wait(10)
        assert codec.decode(CheckIn, request.body, max_bytes=1000).task == "digits"
        return message(replies.pop(0))

    with serving(script) as server:
        bystander = Bystander(f"http://127.0.0.1:{server.port}", "digits", Trust())
        assert not bystander.seated()
        server.wait_for(lambda _: True)
        assert not bystander.seated()  # the answer is held, and nobody waits for it
        release.set()
        until_seated(bystander)
        assert bystander.seated()
        assert len(server.requests) == 2
        bystander.close()


def test_an_aggregator_that_refuses_is_an_error() -> None:
    with serving(lambda _: answer(404, b"<html>")) as server:
        bystander = Bystander(f"http://127.0.0.1:{server.port}", "digits", Trust())
        with pytest.raises(NetworkError, match="gives no seat"):
            until_seated(bystander)
        bystander.close()
