#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes an image to a card or disk with bmaptool, which verifies what it writes.

`make flash BOARD=... DEVICE=/dev/sdX`. It asks nothing: a disk that is in use, or that this system
runs from, is refused.
"""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# A system disk hides behind LVM or encryption; lsblk lists those as children.
SYSTEM_MOUNTS = {"/", "/boot", "/boot/efi", "/usr", "/home", "/var"}


class FlashError(Exception):
    """Why nothing was written."""


def check_device(device: str, disks: list[dict[str, Any]]) -> None:
    """Refuse all but a whole disk that nothing uses; `disks` is the tree that lsblk prints."""
    parents = {child["path"]: disk["path"] for disk in disks for child in _below(disk)}
    if device in parents:
        raise FlashError(f"{device} is a part of {parents[device]}; give the whole disk")
    found = next((disk for disk in disks if disk["path"] == device), None)
    if found is None:
        shown = ", ".join(disk["path"] for disk in disks if disk["type"] == "disk") or "none"
        raise FlashError(f"{device} is no disk of this machine; there are: {shown}")
    if found["type"] != "disk":
        raise FlashError(f"{device} is no disk but a {found['type']}")
    if found["ro"]:
        raise FlashError(f"{device} is write-protected")
    if not found["size"]:
        raise FlashError(f"{device} holds no medium")
    for part in (found, *_below(found)):
        mounts = [each for each in part["mountpoints"] if each]
        if SYSTEM_MOUNTS.intersection(mounts):
            raise FlashError(f"{device} is a disk of this system ({part['path']} is {mounts[0]})")
        if mounts:
            raise FlashError(f"{part['path']} is in use at {mounts[0]}; unmount it first")
        if part["type"] not in ("disk", "part"):
            raise FlashError(f"{part['path']} on {device} is in use ({part['type']})")


def _below(disk: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for child in disk.get("children", []):
        found += [child, *_below(child)]
    return found


def find_image(board: str, build: Path) -> Path:
    """The newest image of the board."""
    found = [
        path
        for path in build.glob(f"image-*/build/tmp*/deploy/images/{board}/fedlearn-*.wic.zst")
        if path.is_symlink()  # the others carry the time in their names
    ]
    if not found:
        raise FlashError(f"there is no image for {board} yet: make image BOARD={board}")
    return max(found, key=lambda path: path.stat().st_mtime)


def list_disks() -> list[dict[str, Any]]:
    """What lsblk knows of the machine's disks."""
    columns = "PATH,TYPE,RO,SIZE,MOUNTPOINTS"
    done = subprocess.run(
        ["lsblk", "--json", "--bytes", "--tree", "--output", columns],
        check=True,
        capture_output=True,
    )
    disks: list[dict[str, Any]] = json.loads(done.stdout)["blockdevices"]
    return disks


def main(arguments: list[str]) -> int:
    """Write; the arguments are board and device."""
    board, device = arguments
    try:
        if not device:
            raise FlashError("give the disk: make flash BOARD=... DEVICE=/dev/sdX")
        path = Path(device).resolve()
        if not path.exists() or not stat.S_ISBLK(path.stat().st_mode):
            raise FlashError(f"{device} is no block device")
        check_device(str(path), list_disks())
        image = find_image(board, ROOT / "build")
        program = shutil.which("bmaptool")
        if program is None:
            raise FlashError("bmaptool is missing: apt install bmap-tools")
    except FlashError as error:
        print(f"make flash: {error}", file=sys.stderr)
        return 2
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"make flash: {error}", file=sys.stderr)
        return 1
    print(f"==> {image} to {path}", flush=True)
    return subprocess.run([program, "copy", str(image), str(path)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
