# SPDX-License-Identifier: Apache-2.0
"""A LAN of its own: a network namespace with a bridge, one tap a device, and nothing else.

The namespace has no name and no link to the host's: no packet leaves it, and it is gone with the
last process in it, however this one ends. Multicast works as on a switch.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import Protocol, Self

from fedlearn.errors import FedlearnError
from fedlearn_qemu import tools

_BRIDGE = "lan0"
PREFIX = 24
# RFC 5737: addresses for documentation, which no real network has.
ADDRESS = "192.0.2.1"


def usable() -> bool:
    """Whether this user may make one."""
    return os.geteuid() == 0 and os.access("/dev/net/tun", os.W_OK)


@dataclass(frozen=True, slots=True)
class Port:
    """What a device needs to be on the LAN."""

    address: str
    options: tuple[str, ...]  # of QEMU
    append: str  # of the kernel


class Network(Protocol):
    """Where devices and the aggregator meet; a context manager."""

    words: str  # what it is, for a person
    host: str  # where the aggregator listens
    address: str  # that address as devices see it
    multicast: bool  # whether mDNS works

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words that start a command within it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def port(self) -> Port:
        """Plug a device in."""


class Lan:
    """The LAN of the namespace, as a `Network`."""

    words = "a LAN of their own, found by mDNS"
    host = address = ADDRESS
    multicast = True

    def __init__(self) -> None:
        self._namespace = -1
        self._ports = 0

    def __enter__(self) -> Self:
        tools.require(tools.LAN)
        # A child makes it: who has left the machine's network in a user namespace cannot go back.
        with subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo made; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            if not (child.stdout and child.stdout.readline()):
                words = child.stderr.read().strip() if child.stderr else ""
                raise FedlearnError(f"no network namespace: {words}")
            self._namespace = os.open(f"/proc/{child.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._ip("link", "set", "lo", "up")
        self._ip("link", "add", _BRIDGE, "type", "bridge", "mcast_snooping", "0")
        self._ip("address", "add", f"{ADDRESS}/{PREFIX}", "dev", _BRIDGE)
        self._ip("link", "set", _BRIDGE, "up")
        self._ip("route", "add", "224.0.0.0/4", "dev", _BRIDGE)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._namespace)

    @property
    def prefix(self) -> tuple[str, ...]:
        """A command that starts another one in the namespace."""
        return ("nsenter", f"--net=/proc/{os.getpid()}/fd/{self._namespace}")

    def port(self) -> Port:
        """Plug a device in."""
        self._ports += 1
        number = self._ports
        name, address = f"tap{number}", ADDRESS.rsplit(".", 1)[0] + f".{number + 10}"
        self._ip("tuntap", "add", name, "mode", "tap")
        self._ip("link", "set", name, "master", _BRIDGE)
        self._ip("link", "set", name, "up")
        mac = f"52:54:00:12:34:{number:02x}"
        return Port(
            address,
            (
                *("-netdev", f"tap,id=net0,ifname={name},script=no,downscript=no"),
                *("-device", f"virtio-net-pci,netdev=net0,mac={mac},romfile="),
            ),
            static(address, ADDRESS),
        )

    def lose(self, percent: int) -> None:
        """Lose frames at random, on their way to the aggregator and back; 100 parts the LAN."""
        self.heal()
        # numgen compares with less than its modulus.
        which = f"numgen random mod 100 < {percent} " if percent < 100 else ""
        hooks = "".join(
            f"chain {hook} {{ type filter hook {hook} priority 0; {which}drop; }}\n"
            for hook in ("input", "output")
        )
        self.command("nft", "-f", "-", text=f"table bridge loss {{\n{hooks}}}\n")

    def heal(self) -> None:
        """Lose nothing any more."""
        rules = "add table bridge loss\ndelete table bridge loss\n"
        self.command("nft", "-f", "-", text=rules)

    def command(self, *command: str, text: str | None = None) -> str:
        """Run a command within the LAN and return what it prints."""
        return tools.call([*self.prefix, *command], text=text)

    def _ip(self, *words: str) -> None:
        self.command("ip", *words)


class UserNetwork:
    """Without root: QEMU's own network. It has no multicast; the aggregator has a fixed address."""

    words = "QEMU's user network, fixed address: no mDNS"
    prefix: tuple[str, ...] = ()
    host = "127.0.0.1"
    # Where it shows the host's loopback.
    address = "10.0.2.2"
    multicast = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def port(self) -> Port:
        """Plug a device in."""
        return Port(
            "10.0.2.15",
            ("-netdev", "user,id=net0,ipv6=off", "-device", "virtio-net-pci,netdev=net0,romfile="),
            static("10.0.2.15", self.address),
        )


def static(address: str, gateway: str) -> str:
    """The kernel's option for a fixed address, as runqemu writes it."""
    return f"net.ifnames=0 ip={address}::{gateway}:255.255.255.0::eth0:off"
