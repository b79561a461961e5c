# SPDX-License-Identifier: Apache-2.0
"""One emulated device: a QEMU process, as a context manager."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedlearn.errors import FedlearnError
from fedlearn_qemu import guest, tools
from fedlearn_qemu.image import Image

# The smallest board that the layer supports has 512 MB; half of it must do.
MEMORY_MB = 256
CONSOLE = "console=ttyAMA0"
_START_S = 20.0
_STOP_S = 30.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """What an emulated device has besides its disk. `network` are options of QEMU."""

    memory_mb: int = MEMORY_MB
    cores: int = 1
    network: tuple[str, ...] = ()
    append: str = ""  # of the kernel, after the image's own
    prefix: tuple[str, ...] = ()  # a command that starts QEMU elsewhere, such as in a namespace


class Machine:
    """A device that is on from `__enter__` to `__exit__`; its disk outlasts it.

    `drive` is QEMU's -drive without id and if; `console` a file that takes what the guest prints.
    """

    def __init__(self, image: Image, drive: str, console: Path, hardware: Hardware) -> None:
        self._image = image
        self._drive = drive
        self.console = console
        self._hardware = hardware
        self._sockets = Path(tempfile.mkdtemp(prefix="fedlearn-qemu-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._guest: guest.Guest | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def guest(self) -> guest.Guest:
        """The channel into the guest."""
        assert self._guest is not None
        return self._guest

    def start(self) -> None:
        """Switch it on; it boots from its disk as it is."""
        for path in self._sockets.iterdir():
            path.unlink()
        with self.console.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + _START_S
        while not (self._sockets / "shell").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = self.console.read_bytes().decode(errors="replace").strip()
                raise FedlearnError(f"QEMU does not start: {words[-400:]}")
            time.sleep(0.02)
        self._guest = guest.Guest(self._sockets / "shell")

    def running(self) -> bool:
        """Whether QEMU runs."""
        return self._process is not None and self._process.poll() is None

    def power_cut(self) -> None:
        """End it at once. The disk keeps what QEMU had passed on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._let_go()

    def close(self) -> None:
        """Cut the power and forget the sockets."""
        self.power_cut()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _let_go(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None
        self._process = None

    def _command(self) -> Sequence[str]:
        image, hardware = self._image, self._hardware
        append = [image.append, CONSOLE, guest.APPEND, hardware.append]
        command = [
            *hardware.prefix,
            # Should this process be killed, the kernel ends QEMU.
            *("setpriv", "--pdeathsig", "KILL"),
            *("qemu-system-aarch64", "-nodefaults", "-no-user-config", "-display", "none"),
            *image.options,
            *("-m", str(hardware.memory_mb), "-smp", str(hardware.cores)),
            *("-kernel", str(image.kernel), "-append", " ".join(filter(None, append))),
            *("-drive", f"id=disk0,if=none,{self._drive}"),
            *("-device", "virtio-blk-pci,drive=disk0"),
            *("-object", "rng-random,filename=/dev/urandom,id=rng0"),
            *("-device", "virtio-rng-pci,rng=rng0"),
            *("-serial", "file:/dev/stdout"),
            # hvc0 may have a login of the image's; hvc1 is ours.
            *("-device", "virtio-serial-pci", "-chardev", "null,id=hvc0"),
            *("-device", "virtconsole,chardev=hvc0"),
            *("-chardev", f"socket,id=hvc1,path={self._sockets}/shell,server=on,wait=off"),
            *("-device", "virtconsole,chardev=hvc1"),
            *hardware.network,
        ]
        if image.initrd is not None:
            command += ["-initrd", str(image.initrd)]
        program = shutil.which(command[0], path=tools.path()) or command[0]
        return [program, *command[1:]]
