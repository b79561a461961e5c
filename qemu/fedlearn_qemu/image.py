# SPDX-License-Identifier: Apache-2.0
"""What is booted. Nothing behind this asks whether BitBake made it or the stand-in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

# What the layer's qemuarm64 boots with; OE-core's conf/machine/qemuarm64.conf.
MACHINE = ("-machine", "virt")
CPU = ("-cpu", "cortex-a57")


@dataclass(frozen=True, slots=True)
class Image:
    """An image and how to boot it. `disk` is raw and is copied before it is written to."""

    name: str
    kernel: Path
    disk: Path
    append: str  # the kernel's command line, without network and consoles
    initrd: Path | None = None
    options: tuple[str, ...] = field(default=(*MACHINE, *CPU))  # of QEMU: machine and CPU

    @property
    def mb(self) -> float:
        """What the disk takes, in MB, without its holes."""
        return self.disk.stat().st_blocks * 512 / 1e6
