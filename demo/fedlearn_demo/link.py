# SPDX-License-Identifier: Apache-2.0
"""A connection of the demo itself to the aggregator, such as a monitor would have."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

from fedlearn.agent.endpoint import Endpoint
from fedlearn.agent.trust import Trust

TIMEOUT_S = 10.0


def connection(url: str, trust: Trust) -> http.client.HTTPConnection:
    """Not open yet; over TLS it believes what a device with the same trust would."""
    address = urlsplit(url)
    host, port = str(address.hostname), address.port or 443
    context = trust.context(Endpoint(host, port, tls=address.scheme == "https"))
    if context is None:
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
