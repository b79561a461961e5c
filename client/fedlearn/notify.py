# SPDX-License-Identifier: Apache-2.0
"""What a service tells systemd: the protocol of sd_notify(3), a datagram with lines of text.

Without `NOTIFY_SOCKET` nothing is sent. The variables are taken out of the environment, so that no
child process speaks for the service.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import MutableMapping

from fedlearn.text import clean

# systemd reads within milliseconds. If it does not, the service has better things to do.
_SEND_TIMEOUT_S = 1.0

logger = logging.getLogger(__name__)


class Notifier:
    """Speaks to the service manager, if there is one.

    `watchdog_s`: how often `alive` is to be called, half of `WatchdogSec=`; None: never.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self._status = ""
        self._socket: socket.socket | None = None
        self._address = address
        if not address:
            return
        if address[0] not in "@/":
            logger.warning("NOTIFY_SOCKET is none that is known here: %s", clean(address))
            return
        if address[0] == "@":  # abstract, unix(7)
            self._address = "\0" + address[1:]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_SEND_TIMEOUT_S)

    @classmethod
    def take(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """Read what systemd set for this process, and remove it."""
        address = environment.pop("NOTIFY_SOCKET", "")
        interval_us = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        watchdog_s = None
        if address and pid in ("", str(os.getpid())):  # of another process: sd_watchdog_enabled(3)
            with contextlib.suppress(ValueError):
                # Bounded: a text of digits may be more than a float.
                interval_s = int(interval_us[:18]) / 1e6
                watchdog_s = interval_s / 2 if interval_s > 0 else None
        return cls(address, watchdog_s)

    def ready(self) -> None:
        """The service does its work from now on."""
        self._send("READY=1")

    def status(self, line: str) -> None:
        """Show a line in `systemctl status`; the same one again is not sent."""
        line = clean(line)
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def alive(self) -> None:
        """Tell the watchdog that the main loop goes round."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The service is about to end."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(text.encode("utf-8", "replace"), self._address)
        except OSError as error:  # systemd restarts, or its queue is full
            logger.debug("cannot notify systemd: %s", error.strerror or error)
