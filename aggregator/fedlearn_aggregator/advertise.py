# SPDX-License-Identifier: Apache-2.0
"""Publishes the aggregator on the LAN by mDNS and DNS-SD (RFC 6762, RFC 6763).

What is published is a hint and proves nothing: a device believes the TLS handshake.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from fedlearn.discovery import SERVICE_TYPE, multicast_addresses
from fedlearn.errors import NetworkError
from fedlearn.messages import PROTOCOL_VERSION
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
        wanted = tuple(interfaces) or (() if _is_any(host) else (host,))
        addresses = multicast_addresses(wanted)
        reachable = addresses if _is_any(host) else [host]
        zeroconf = AsyncZeroconf(interfaces=addresses)
        info = service_info(task, reachable, port, tls=tls)
        # Without probing for the name: the instance's random digits make it ours.
        await zeroconf.async_register_service(info, cooperating_responders=True)
    except (NetworkError, OSError, ValueError, ZeroconfError) as error:
        _log.warning(
            'not published by mDNS: %s; devices need url = "%s://%s:%d" in their configuration',
            error.message if isinstance(error, NetworkError) else error,
            "https" if tls else "http",
            host,
            port,
        )
        yield False
        return
    else:
        _log.info("published by mDNS as %s on %s", info.name, ", ".join(addresses))
        yield True
    finally:
        if zeroconf is not None:
            try:
                async with asyncio.timeout(GOODBYE_S):
                    await zeroconf.async_unregister_all_services()
            except TimeoutError:
                pass
            await zeroconf.async_close()


def _is_any(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified
