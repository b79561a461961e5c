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


for holder, name, replacement in (
    (Trust, "context", context),
    (Trust, "check_dates", lambda *_: None),
    (Aggregators, "_can_be_trusted", lambda *_: True),
    (connection, "refuse_plaintext_beyond_loopback", lambda _: None),
):
    assert hasattr(holder, name)
    setattr(holder, name, replacement)

if __name__ == "__main__":
    sys.exit(cli.main())
