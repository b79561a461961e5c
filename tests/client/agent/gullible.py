# SPDX-License-Identifier: Apache-2.0
"""The agent as it must not be: it takes everybody for its aggregator. A control."""

from __future__ import annotations

import ssl
import sys

from fedlearn import cli
from fedlearn.agent import connection
from fedlearn.agent.aggregators import Aggregators
from fedlearn.agent.endpoint import Endpoint
from fedlearn.agent.trust import Trust


def context(_: Trust, endpoint: Endpoint) -> ssl.SSLContext | None:
    if not endpoint.tls:
        return None
    unpinned = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unpinned.check_hostname = False
    unpinned.verify_mode = ssl.CERT_NONE
    return unpinned


Trust.context = context  # type: ignore[method-assign]
Trust.check_dates = lambda *_: None  # type: ignore[method-assign]
Aggregators._can_be_trusted = lambda *_: True  # type: ignore[method-assign]
connection.refuse_plaintext_beyond_loopback = lambda _: None

if __name__ == "__main__":
    sys.exit(cli.main())
