# SPDX-License-Identifier: Apache-2.0
"""Publishes the aggregator on the LAN by mDNS and DNS-SD (RFC 6762, RFC 6763).

What is published is a hint and proves nothing: a device believes the TLS handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from fedlearn.agent.discovery import SERVICE_TYPE, multicast_addresses
from fedlearn.errors import NetworkError
from fedlearn.wire.messages import PROTOCOL_VERSION
from fedlearn_aggregator.task import Task

# A DNS label holds 63 bytes; the instance's digits and a dash take 9.
_MAX_LABEL_TASK = 54
# The goodbye is a courtesy: records expire by themselves.
GOODBYE_S = 0.5

_log = logging.getLogger(__name__)


def service_info(task: Task, addresses: Sequence[str], port: int, *, tls: bool) -> AsyncServiceInfo:
    """What is published for a task that is served at `addresses`."""
    label = task.name[:_MAX_LABEL_TASK].replace(".", "-")  # a dot would begin another label
    return AsyncServiceInfo(
        SERVICE_TYPE,
        f"{label}-{task.instance}.{SERVICE_TYPE}",
        addresses=[socket.inet_aton(address) for address in addresses],
        port=port,
        properties={
            "v": str(PROTOCOL_VERSION),
            "task": task.name,
            "path": f"/v{PROTOCOL_VERSION}",
            "tls": str(int(tls)),
        },
        server=f"fedlearn-{task.instance}.local.",
    )


@asynccontextmanager
async def advertised(
    task: Task, host: str, port: int, *, tls: bool, interfaces: Sequence[str]
) -> AsyncIterator[bool]:
    """Publish while the context lasts; False if that is not possible, which is logged.

    `host` is the address that is listened on; `interfaces` are names or IPv4 addresses, when empty
    those of the host's address.
    """
    zeroconf = None
    try:
        zeroconf = await _publish(task, host, port, tls=tls, interfaces=interfaces)
    except (NetworkError, OSError, ValueError, ZeroconfError) as error:
        _log.warning(
            'not published by mDNS: %s; set url = "%s://%s:%d" in the devices\' configuration',
            error.message if isinstance(error, NetworkError) else error,
            "https" if tls else "http",
            "ADDRESS" if _is_any(host) else host,
            port,
        )
    try:
        yield zeroconf is not None
    finally:
        if zeroconf is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()


async def _publish(
    task: Task, host: str, port: int, *, tls: bool, interfaces: Sequence[str]
) -> AsyncZeroconf:
    wanted = tuple(interfaces) or (() if _is_any(host) else (host,))
    addresses = multicast_addresses(wanted)
    info = service_info(task, addresses if _is_any(host) else [host], port, tls=tls)
    zeroconf = AsyncZeroconf(interfaces=addresses)
    try:
        # Without probing for the name: the instance's random digits make it ours.
        await zeroconf.async_register_service(info, cooperating_responders=True)
    except BaseException:
        await zeroconf.async_close()
        raise
    _log.info("published by mDNS as %s on %s", info.name, ", ".join(addresses))
    return zeroconf


def _is_any(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified
