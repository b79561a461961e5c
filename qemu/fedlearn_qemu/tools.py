# SPDX-License-Identifier: Apache-2.0
"""Programs of the host: which are needed, what package has them, and how they are called."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedlearn.errors import FedlearnError, MissingFileError

# Debian's names; on a Debian machine an ordinary user has no /usr/sbin in PATH.
PACKAGES = {
    "qemu-system-aarch64": "qemu-system-arm",
    "mmdebstrap": "mmdebstrap",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "depmod": "kmod",
    "sfdisk": "fdisk",
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "newuidmap": "uidmap",
    "zstd": "zstd",
}
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_MOST_WORDS = 600

BOOT = ("qemu-system-aarch64", "mcopy", "debugfs", "sfdisk", "setpriv")
BUILD = ("mmdebstrap", "mkfs.vfat", "mke2fs", "depmod", "sfdisk")
LAN = ("ip", "nsenter", "unshare")
# To be root of a user namespace.
ROOTLESS = ("unshare", "newuidmap")
LOSS = ("nft",)
TORTURE = ("e2fsck",)


def path() -> str:
    """PATH with the folders of the system's programs."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])


def missing(names: Iterable[str]) -> list[str]:
    """The programs that are not installed."""
    return [name for name in names if shutil.which(name, path=path()) is None]


def require(names: Iterable[str]) -> None:
    """Raise MissingFileError that names the missing programs' packages."""
    lost = missing(names)
    if lost:
        packages = " ".join(sorted({PACKAGES[name] for name in lost}))
        raise MissingFileError(
            f"{', '.join(lost)} not found on this machine", hint=f"apt install {packages}"
        )


def call(
    command: Sequence[str | Path],
    *,
    text: str | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program and return what it prints. Raises FedlearnError with its last words."""
    done = subprocess.run(
        [str(word) for word in command],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=cwd,
        env={**os.environ, **(environment or {}), "PATH": path()},
        check=False,
    )
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip())[-_MOST_WORDS:]
        raise FedlearnError(f"{Path(command[0]).name} failed ({done.returncode}): {words}")
    return done.stdout
