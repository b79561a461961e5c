# SPDX-License-Identifier: Apache-2.0
"""Makes the stand-in image, or takes the one that was made of the same inputs."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlearn.errors import FedlearnError
from fedlearn_qemu import tools
from fedlearn_qemu.digest import digest
from fedlearn_qemu.image import CPU, MACHINE, Image
from fedlearn_qemu.source import source_root
from fedlearn_qemu.standin import bytecode, debian, initrd, layer, partitions, system, wheels

# The third parties' part changes seldom and takes longest.
_BASE_SOURCES = ("debian.py", "bytecode.py", "wheels.py")
_STDLIB = f"/usr/lib/python{debian.PYTHON}"
# As runqemu has it; nothing of the layer's own is in it.
APPEND = "root=/dev/vda2 ro rootwait swiotlb=0 quiet"


def stand_in(cache: Path, say: Callable[[str], None]) -> Image:
    """Return the image; it is made, in a minute, unless `cache` has it."""
    own = Path(__file__).parent
    root = source_root()
    base = digest([own / name for name in _BASE_SOURCES], [*wheels.inputs()])
    sources = [root / name for name in ("meta-fedlearn", "client", "aggregator", "pyproject.toml")]
    whole = digest([*sources, *sorted(own.glob("*.py"))], [base])
    folder = cache / f"standin-{whole}"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache):
        if not (folder / "disk.img").exists():
            tools.require(tools.BUILD)
            _require_root()
            say("the stand-in image is not cached for these sources: making it, about a minute")
            with _staging(folder) as made:
                _make(cache / f"base-{base}", made, say)
            _forget_old(cache, folder)
    return Image(
        name=f"stand-in (Debian {debian.SUITE}, not BitBake's)",
        kernel=folder / "Image",
        initrd=folder / "initrd",
        disk=folder / "disk.img",
        append=APPEND,
        options=(*MACHINE, *CPU),
    )


def _require_root() -> None:
    """The image's files belong to users of its own."""
    if os.geteuid() != 0:
        tools.require(tools.ROOTLESS)
        raise FedlearnError(
            "the stand-in image is made as root, and this machine lets nobody else be it",
            hint="run it as root once, allow user namespaces, or name an image with --image",
        )


def _make(base: Path, made: Path, say: Callable[[str], None]) -> None:
    if not (base / "root").exists():
        with _staging(base) as staging:
            _make_base(staging, say)
    say("installing the client and the layer's units, configuration and partitions")
    root = made / "root"
    tools.call(["cp", "-a", base / "root", root])
    accounts = system.accounts(root)
    layer.add(root, accounts)
    accounts.write(root)
    system.complete(root)
    layer.overlay_etc(root)
    ours = f"{debian.PYTHON_PACKAGES}/fedlearn"
    bytecode.compile_folders(base / "python", root, [ours])
    partitions.write(layer.disk(), root, made / "disk.img")
    shutil.rmtree(root)
    for name in ("Image", "initrd"):
        shutil.copy(base / name, made / name)


def _make_base(made: Path, say: Callable[[str], None]) -> None:
    root = made / "root"
    say(f"unpacking Debian {debian.SUITE}'s arm64 packages")
    debian.extract(debian.PACKAGES, "arm64", root)
    debian.take_kernel(root, made / "Image")
    debian.prune(root)
    debian.keep_modules(root)
    initrd.write(root, made / "initrd")
    say("unpacking the wheels for aarch64")
    wheels.add(root)
    say(f"compiling the image's Python {debian.PYTHON}")
    bytecode.host_python(made / "python")
    bytecode.compile_folders(made / "python", root, [_STDLIB, debian.PYTHON_PACKAGES])


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder that gets its name when it is complete."""
    staging = target.with_name(target.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    yield staging
    staging.rename(target)


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One maker at a time."""
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget_old(cache: Path, keep: Path) -> None:
    """The newest three stay: each is some hundred MB."""
    made = sorted(cache.glob("standin-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in made[3:]:
        if path != keep:
            shutil.rmtree(path)
