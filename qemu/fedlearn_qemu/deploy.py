# SPDX-License-Identifier: Apache-2.0
"""An image that BitBake built: its deploy folder, and what its qemuboot.conf says about booting."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

from fedlearn.errors import ConfigError, MissingFileError
from fedlearn_qemu import tools
from fedlearn_qemu.image import CPU, MACHINE, Image

_SECTION = "config_bsp"
# In the order of preference: the layer's images are disks.
_DISKS = (".wic", ".wic.zst", ".ext4")
_SYSTEM = "qemu-system-aarch64"


def deployed(folder: Path, cache: Path) -> Image:
    """Read a deploy folder, such as build/tmp/deploy/images/qemuarm64.

    Raises MissingFileError when something is not there, ConfigError when it is for another machine.
    """
    found = [path for path in folder.glob("*.qemuboot.conf") if path.is_file()]
    if not found:
        raise MissingFileError(
            f"{folder} has no *.qemuboot.conf",
            hint="name BitBake's deploy folder: .../tmp/deploy/images/qemuarm64",
        )
    # The link without a date is the newest; among several images the first by name.
    path = min(found, key=lambda each: (not each.is_symlink(), each.name))
    return read(path, cache)


def read(path: Path, cache: Path) -> Image:
    """Read one qemuboot.conf; files are beside it."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(path, "utf-8")
    if not parser.has_section(_SECTION):
        raise ConfigError(f"{path} has no [{_SECTION}]")
    # What BitBake could not expand, because a variable within it has no value, has none either.
    values = {
        name: value
        for name, value in parser[_SECTION].items()
        if value.strip() and "${" not in value
    }
    system = values.get("qb_system_name", _SYSTEM)
    if system != _SYSTEM:
        raise ConfigError(f"{path.name} is for {system}", hint="build for MACHINE = qemuarm64")
    kernel = _beside(path, values.get("qb_default_kernel", values.get("kernel_imagetype", "Image")))
    disk = _disk(path, values, cache)
    whole = "/dev/vda" if disk.suffix == ".ext4" else "/dev/vda2"
    root = values.get("qb_kernel_root", whole) if disk.suffix != ".ext4" else whole
    append = f"root={root} rootwait {values.get('qb_kernel_cmdline_append', '')}".split()
    options = [
        *shlex.split(values.get("qb_machine", " ".join(MACHINE))),
        *shlex.split(values.get("qb_cpu", " ".join(CPU))),
    ]
    return Image(
        path.name.removesuffix(".qemuboot.conf"),
        kernel,
        disk,
        " ".join(append),
        options=tuple(options),
    )


def _beside(path: Path, name: str) -> Path:
    found = path.parent / name
    if not found.is_file():
        raise MissingFileError(f"{path.name} names {name}, which is not beside it")
    return found


def _disk(path: Path, values: dict[str, str], cache: Path) -> Path:
    stems = [path.name.removesuffix(".qemuboot.conf")]
    stems += [values[name] for name in ("image_link_name", "image_name") if name in values]
    wanted = values.get("qb_default_fstype", "")
    endings = sorted(_DISKS, key=lambda each: each.removeprefix(".").split(".")[0] != wanted)
    for ending in endings:
        for stem in stems:
            found = path.parent / (stem + ending)
            if found.is_file():
                return found if ending != ".wic.zst" else _unpacked(found, cache)
    raise MissingFileError(f"{path.parent} has no {stems[0]}.wic and no {stems[0]}.ext4")


def _unpacked(packed: Path, cache: Path) -> Path:
    tools.require(("zstd",))
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{packed.stem.removesuffix('.wic')}-{packed.stat().st_mtime_ns}.wic"
    if not target.exists():
        part = target.with_suffix(".part")
        tools.call(["zstd", "-q", "-d", "-f", packed, "-o", part])
        part.rename(target)
    return target
