# SPDX-License-Identifier: Apache-2.0
"""Browsing for aggregators by mDNS (RFC 6762, RFC 6763), as a program.

`python -m fedlearn.agent.discovery --task T` prints each find as a line of JSON (the fields of
`search.Found`, or `error` and `hint`) until its time limit or until nobody reads any more. It is a
process of its own because zeroconf and asyncio cost 10 MB, which an agent that waits for work need
not hold.

Two browsers run side by side. One asks from a port of its own, and a responder answers that at
once (RFC 6762, section 6.7); an answer by multicast, where the responder sent the same one to
another device within the last second, would come a second late. The other browser listens on port
5353 and so hears an aggregator that announces itself later. Where one cannot work, the other does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import ipaddress
import json
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from fedlearn.agent.search import Found
from fedlearn.errors import ExitCode, NetworkError
from fedlearn.wire.messages import PROTOCOL_VERSION

SERVICE_TYPE = "_fedlearn._tcp.local."
# A LAN has a handful of aggregators; more finds are somebody's flood.
MAX_FINDS = 64
# The same for those that have to be asked for more, at one moment.
MAX_RESOLVES = 64
# Long enough for three queries (at 0, 1 and 3 s) for the parts that an answer left out.
_RESOLVE_MS = 3000
_MDNS = ("224.0.0.251", 5353)
# linux/sockios.h, netdevice(7): an interface's first IPv4 address
_SIOCGIFADDR = 0x8915
_MAX_INTERFACE = 15  # bytes of a name: IFNAMSIZ, less the NUL


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedlearn.agent.discovery", description=__doc__)
    parser.add_argument("--task", required=True, help="name of the task to find aggregators of")
    parser.add_argument("--interface", action="append", default=[], help="name or IPv4 address")
    parser.add_argument("--time-limit-s", type=float, default=10.0)
    options = parser.parse_args(arguments)
    # What zeroconf warns about (an interface that went away) ends as "not found".
    logging.getLogger("zeroconf").setLevel(logging.ERROR)
    try:
        addresses = multicast_addresses(options.interface)
        asyncio.run(_Browser(options.task).run(addresses, options.time_limit_s))
    except NetworkError as error:
        _print({"error": error.message, "hint": error.hint})
        return error.exit_code
    return ExitCode.OK


def multicast_addresses(interfaces: Sequence[str]) -> list[str]:
    """Return the IPv4 addresses to browse from; raise `NetworkError` when there is none.

    `interfaces` are names or addresses; when empty, all of this machine. One address of each is
    enough: a group is joined on the interface.
    """
    wanted = interfaces or [name for _, name in socket.if_nameindex()]
    addresses = dict.fromkeys(_address_of(each) for each in wanted)
    usable = [each for each in addresses if each is not None and _can_multicast(each)]
    if not usable:
        tried = ", ".join(interfaces) or "all interfaces"
        raise NetworkError(
            f"no network to search for an aggregator by mDNS (tried {tried})",
            hint="connect the network, check aggregator.interfaces, or set aggregator.url",
        )
    return usable


def _address_of(interface: str) -> str | None:
    """The address itself, or that of the interface of this name; None if it has none."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv4Address(interface))
    name = interface.encode()
    if len(name) > _MAX_INTERFACE:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("40s", name))
        except OSError:  # no such interface, or it has no IPv4 address
            return None
    return socket.inet_ntoa(answer[20:24])  # ifr_name[16], sin_family, sin_port, sin_addr


def _can_multicast(address: str) -> bool:
    """Whether it is an address of ours with a route for multicast; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
            probe.connect(_MDNS)
        except OSError:
            return False
    return True


class _Browser:
    """Prints the aggregators of one task, each address once."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._seen: set[Found] = set()
        self._resolving: set[asyncio.Task[None]] = set()
        self._unread = asyncio.Event()

    async def run(self, addresses: list[str], time_limit_s: float) -> None:
        """Browse until the time limit, or until the reader of our output is gone."""
        self._watch_reader()
        stacks, refused = [], None
        for own_port in (True, False):
            try:
                stacks.append(AsyncZeroconf(interfaces=addresses, unicast=own_port))
            except OSError as error:
                refused = error
        if not stacks:
            reason = os.strerror(refused.errno or 0) if refused else ""
            raise NetworkError(f"cannot search by mDNS: {reason}", hint="set aggregator.url")
        for stack in stacks:
            AsyncServiceBrowser(stack.zeroconf, SERVICE_TYPE, handlers=[self._changed])
        try:
            await asyncio.wait_for(self._unread.wait(), time_limit_s)
        except TimeoutError:
            pass
        finally:
            for stack in stacks:
                await stack.async_close()

    def _watch_reader(self) -> None:
        """A pipe that nobody reads reports an error, which epoll counts as readable."""
        output = sys.stdout.fileno()
        if stat.S_ISFIFO(os.fstat(output).st_mode):
            asyncio.get_running_loop().add_reader(output, self._unread.set)

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed or len(self._seen) >= MAX_FINDS:
            return
        # The answer of an aggregator carries all of it, so a flood of bare names hides none.
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        if info.load_from_cache(zeroconf):
            self._report(info)
        elif len(self._resolving) < MAX_RESOLVES:
            task = asyncio.ensure_future(self._resolve(zeroconf, info))
            self._resolving.add(task)
            task.add_done_callback(self._resolving.discard)

    async def _resolve(self, zeroconf: Zeroconf, info: AsyncServiceInfo) -> None:
        """Ask for what the answer left out."""
        if await info.async_request(zeroconf, _RESOLVE_MS):
            self._report(info)

    def _report(self, info: AsyncServiceInfo) -> None:
        """Print the instance's addresses, if it is an aggregator of the task."""
        if not info.port:
            return
        hints = info.decoded_properties
        if hints.get("v") != str(PROTOCOL_VERSION) or hints.get("task") != self._task:
            return
        for address in info.parsed_addresses(IPVersion.V4Only):
            found = Found(
                info.name.removesuffix(f".{SERVICE_TYPE}"),
                address,
                info.port,
                hints.get("tls") != "0",
            )
            if found not in self._seen and len(self._seen) < MAX_FINDS:
                self._seen.add(found)
                with contextlib.suppress(BrokenPipeError):  # `run` notices, too
                    _print(asdict(found))


def _print(values: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
