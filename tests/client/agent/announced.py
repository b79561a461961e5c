# SPDX-License-Identifier: Apache-2.0
"""Aggregators on real mDNS, on the loopback interface only."""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Iterator

from zeroconf import ServiceInfo, Zeroconf

from fedlearn.agent.discovery import SERVICE_TYPE


def unique_task() -> str:
    """A task that no other test or aggregator on this machine has."""
    return f"test-{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def announced(*services: tuple[str, int], **hints: str) -> Iterator[None]:
    """Announce (task, port) pairs; `hints` replace TXT records."""
    with Zeroconf(interfaces=["127.0.0.1"]) as zeroconf:
        for task, port in services:
            instance = uuid.uuid4().hex[:8]
            info = ServiceInfo(
                SERVICE_TYPE,
                f"{task}-{instance}.{SERVICE_TYPE}",
                addresses=[socket.inet_aton("127.0.0.1")],
                port=port,
                properties={"v": "1", "task": task, "path": "/v1", "tls": "0", **hints},
                server=f"{instance}.local.",
            )
            zeroconf.register_service(info, cooperating_responders=True)
        yield
