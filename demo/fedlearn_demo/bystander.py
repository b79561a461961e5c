# SPDX-License-Identifier: Apache-2.0
"""A participant that takes a seat in a round and leaves it empty.

So the round stays open, and the devices hold a check-in, as they do for most of their life. A task
that is finished would send them to sleep for minutes, and what they cost then is nothing.
"""

from __future__ import annotations

import http.client
import select
from contextlib import closing
from pathlib import Path

from fedlearn.agent.connection import Connection
from fedlearn.agent.endpoint import parse_url
from fedlearn.agent.identity import Identity
from fedlearn.agent.stop import StopSignal
from fedlearn.agent.transport import enrol
from fedlearn.agent.trust import Trust
from fedlearn.errors import NetworkError, ProtocolError
from fedlearn.wire import codec
from fedlearn.wire.messages import CheckIn, Enrolment, TrainOrder, Wait
from fedlearn_demo.link import connection

NAME = "bystander"
_MAX_BYTES = 64 * 1024


def enrolled(url: str, ca: Path, token: str, folder: Path) -> Trust:
    """Enrol the bystander as any device does, with its key in `folder`; return its trust."""
    folder.mkdir(exist_ok=True)
    identity = Identity(folder, NAME)
    enrolment = Enrolment(identity.request(), token)
    link = Connection(parse_url(url, insecure=False), Trust(ca), StopSignal())
    with closing(link):
        identity.take(enrol(link, NAME, enrolment))
    return Trust(ca, identity)


class Bystander:
    """Checks in at the aggregator of `task`; used as a context manager, which ends the request."""

    def __init__(self, url: str, task: str, trust: Trust) -> None:
        self._check_in = codec.encode(CheckIn(task, NAME))
        self._connection = connection(url, trust)
        self._asked = False
        self._seated = False

    def seated(self) -> bool:
        """Ask for a seat, or look whether there is one by now; never waits for it."""
        if self._seated:
            return True
        try:
            if not self._asked:
                headers = {"Content-Type": "application/cbor"}
                self._connection.request("POST", "/v1/checkin", self._check_in, headers)
                self._asked = True
            elif select.select([self._connection.sock], [], [], 0)[0]:
                body = self._connection.getresponse().read(_MAX_BYTES)
                reply = codec.decode((TrainOrder, Wait), body, max_bytes=_MAX_BYTES)
                self._asked = False
                self._seated = isinstance(reply, TrainOrder)
        except (OSError, http.client.HTTPException, ProtocolError) as error:
            raise NetworkError(f"the aggregator gives no seat: {error}") from error
        return self._seated

    def close(self) -> None:
        """End the request, if there is one."""
        self._connection.close()
