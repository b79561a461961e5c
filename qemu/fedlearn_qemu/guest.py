# SPDX-License-Identifier: Apache-2.0
"""The channel of proof: a root shell of the guest on a virtio console that only the host has.

No image is changed for it. systemd itself starts the shell early in the boot, where the kernel's
command line asks for it (`systemd.debug_shell=hvc1`, systemd 255 and newer). A command is answered
by one frame: a marker with a random number, the exit code, the length of the output, the output as
`od -vb` shows it, and the marker again. What a terminal adds (prompts, echo, the lines of other
programs) is outside of frames or makes a frame invalid; an echo cannot fake the marker, because the
command holds its two halves apart.
"""

from __future__ import annotations

import re
import secrets
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedlearn.errors import FedlearnError

# On a busy machine an emulated udev takes longer than the 90 s that systemd gives a disk.
APPEND = "systemd.debug_shell=hvc1 systemd.default_device_timeout_sec=300"
# The kernel's line discipline takes 4095 bytes; a longer line would be cut without a word.
MAX_LINE_BYTES = 4000
_MARK = "FEDLEARN"
_PROBE_EVERY_S = 2.0
_INTERRUPT = b"\x03"
_SEND_S = 10.0


class GuestError(FedlearnError):
    """The guest does not answer, or its command failed."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command of the guest returned; `output` is stdout and stderr."""

    code: int
    output: str

    def check(self) -> str:
        """Return the output; raise GuestError unless the command returned 0."""
        if self.code:
            raise GuestError(f"exit code {self.code} in the guest: {self.output.strip()[-500:]}")
        return self.output


def request(script: str, number: str, answer: str = "/run/.answer") -> bytes:
    """The lines that make a shell run `script` and answer with the frame of `number`.

    The output waits in the file `answer`, a path without blanks.
    """
    lines = (
        f"sh -c {shlex.quote(script)} </dev/null >{answer} 2>&1; code=$?\n"
        f"printf '\\n%s%s %s %s\\n' {_MARK} {number} $code $(wc -c <{answer}); "
        # BusyBox as OE-core configures it has none of od's newer options.
        f"od -vb {answer}; printf '%s%s.\\n' {_MARK} {number}\n"
    )
    if max(map(len, lines.encode().split(b"\n"))) > MAX_LINE_BYTES:
        raise ValueError(f"a line of the script has more than {MAX_LINE_BYTES} bytes")
    return lines.encode()


def parse(received: bytes, number: str) -> Result | None:
    """Find the frame of `number`; None while it is not complete.

    Raises GuestError for a complete frame that holds anything else than what it announces.
    """
    text = received.replace(b"\r", b"").decode("ascii", "replace")
    mark = _MARK + number
    found = re.search(rf"^{mark} (\d+) (\d+)\n(.*?)^{mark}\.$", text, re.M | re.S)
    if found is None:
        return None
    try:
        output = _from_od(found[3])
    except ValueError as error:
        raise GuestError("the answer of the guest is garbled") from error
    if len(output) != int(found[2]):
        raise GuestError(f"the guest answered {len(output)} bytes of {found[2]}")
    return Result(int(found[1]), output.decode(errors="replace"))


def _from_od(lines: str) -> bytes:
    """Undo `od -vb`: after the offset, each byte by three octal digits. Raises ValueError."""
    return bytes(int(byte, 8) for line in lines.splitlines() for byte in line.split()[1:])


class Guest:
    """The shell at the other end of a UNIX socket that QEMU serves; a context manager."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the channel; the shell goes on."""
        self._socket.close()

    def wait_for_shell(self, timeout_s: float = 120.0) -> None:
        """Wait until the guest's shell answers."""
        deadline = time.monotonic() + timeout_s
        # Plain sh for whatever shell it is, and no echo. What is said before the guest listens is
        # lost, so it is said again; no answer is late, however slow the boot.
        number = secrets.token_hex(8)
        hello = b"exec /bin/sh\nstty -echo 2>/dev/null\n" + request("true", number)
        received = b""
        while time.monotonic() < deadline:
            self._send(hello)
            again = time.monotonic() + _PROBE_EVERY_S
            while (left_s := again - time.monotonic()) > 0:
                received += self._receive(left_s)
            try:
                answered = parse(received, number) is not None
            except GuestError:  # two answers, one into the other
                answered, received = False, b""
            if answered:
                self._settle()
                return
        raise GuestError(f"the guest has no shell after {timeout_s:.0f} s")

    def run(self, script: str, timeout_s: float = 60.0) -> Result:
        """Run a script in the guest. Raises GuestError when no answer comes in time."""
        return self._ask(script, timeout_s)

    def check(self, script: str, timeout_s: float = 60.0) -> str:
        """Run a script that must succeed, and return its output."""
        return self.run(script, timeout_s).check()

    def wait_until(self, script: str, timeout_s: float, every_s: float = 0.5) -> str:
        """Run a script until it succeeds, and return its output."""
        deadline = time.monotonic() + timeout_s
        while True:
            result = self.run(script)
            if result.code == 0:
                return result.output
            if time.monotonic() > deadline:
                raise GuestError(
                    f"not within {timeout_s:.0f} s in the guest: {script}: {result.output[-300:]}"
                )
            time.sleep(every_s)

    def _settle(self) -> None:
        """Read the answers to all that was said before."""
        while self._receive(_PROBE_EVERY_S):
            pass

    def _ask(self, script: str, timeout_s: float) -> Result:
        number = secrets.token_hex(8)
        deadline = time.monotonic() + timeout_s
        received = b""
        self._send(request(script, number))
        while (left_s := deadline - time.monotonic()) > 0:
            received += self._receive(left_s)
            if f"{_MARK}{number}.".encode() in received:
                result = parse(received, number)
                if result is not None:
                    return result
        self._send(_INTERRUPT + b"\n")
        raise GuestError(f"no answer of the guest within {timeout_s:.0f} s: {script[:100]}")

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(_SEND_S)
            self._socket.sendall(data)
        except OSError as error:
            raise GuestError(f"the guest takes no command: {error}") from error

    def _receive(self, timeout_s: float) -> bytes:
        """What comes within the time; nothing if nothing does."""
        try:
            self._socket.settimeout(timeout_s)
            chunk = self._socket.recv(1 << 16)
        except TimeoutError:
            return b""
        except OSError as error:
            raise GuestError(f"the guest is off: {error.strerror}") from error
        if not chunk:
            raise GuestError("the guest is off")
        return chunk
