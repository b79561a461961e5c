# SPDX-License-Identifier: Apache-2.0
"""A microcontroller on a UART or USB port.

pyserial opens and sets the port; what is read is what the kernel has, in one call, after a moment
in which more may come: a sensor at 100 Hz then costs some fifty wake-ups a second, whatever its
lines are cut into.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from collections.abc import Iterable

import serial

from fedlearn.collect.lines import LineDecoder
from fedlearn.collect.sample import Item, SourceLost
from fedlearn.collect.sequence import SequenceDecoder
from fedlearn.errors import FedlearnError, MissingFileError

# The kernel's line discipline holds no more (N_TTY_BUF_SIZE): behind that bytes of a UART are lost.
READ_BYTES = 4096
# 4096 bytes take 35 ms at 1,000,000 baud, and 350 ms at 115,200.
GATHER_S = 0.02
# With so much there already, more is on its way: a fast sensor is not made to wait.
_MUCH = 1024
_USB = re.compile(r"usb:([0-9a-fA-F]{4}):([0-9a-fA-F]{4})(?::(.+))?")

Decoder = LineDecoder | SequenceDecoder


def find_port(name: str) -> str:
    """The device file of `source.port`. Raises MissingFileError when it is not plugged in."""
    usb = _USB.fullmatch(name)
    if usb is None:
        return name
    from serial.tools import list_ports  # noqa: PLC0415 - most name a path

    vendor, product, number = int(usb[1], 16), int(usb[2], 16), usb[3]
    found = sorted(
        port.device
        for port in list_ports.comports()
        if (port.vid, port.pid) == (vendor, product) and number in (None, port.serial_number)
    )
    if not found:
        raise MissingFileError(f"there is no serial port {name}", hint="is it plugged in?")
    if len(found) > 1:
        raise FedlearnError(
            f"{name} is {' and '.join(found)}",
            hint="add the serial number: usb:VENDOR:PRODUCT:SERIAL",
        )
    return found[0]


class SerialSource:
    """An open port. The constructor raises FedlearnError when it cannot be opened."""

    def __init__(self, port: str, baud: int, decoder: Decoder) -> None:
        self._decoder = decoder
        device = find_port(port)
        try:
            self._port = serial.Serial(device, baud, timeout=0, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            reason = os.strerror(number) if number else str(error)
            raise FedlearnError(
                f"cannot open {device}: {reason}",
                hint="its user needs the group dialout" if "denied" in reason else "",
            ) from error
        self._handle: int = self._port.fileno()

    def read(self, timeout_s: float) -> Iterable[Item]:
        """What has come within `timeout_s`. Raises SourceLost when the port has gone."""
        if not select.select([self._handle], [], [], timeout_s)[0]:
            return ()
        try:
            if self._port.in_waiting < _MUCH:
                time.sleep(GATHER_S)
            data = os.read(self._handle, READ_BYTES)
        except BlockingIOError:
            return ()
        except OSError as error:  # EIO: unplugged
            raise SourceLost(error.strerror or "input/output error") from error
        if not data:
            raise SourceLost("unplugged")
        return self._decoder.feed(data)

    def close(self) -> None:
        """Close the port."""
        with contextlib.suppress(OSError):  # it has gone
            self._port.close()
