# SPDX-License-Identifier: Apache-2.0
"""Compiles the Python of the image for its own version, on the host and without emulation.

Debian does it in maintainer scripts, which do not run here; on a read-only root each start of the
agent would then compile the standard library again. Bytecode is the same on all machines, so this
machine's build of the same Python makes it, started by its own dynamic loader.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedlearn.errors import FedlearnError
from fedlearn_qemu.standin import debian
from fedlearn_qemu.tools import call

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_LOADERS = ("usr/lib*/ld-linux-x86-64.so.2", "usr/lib*/ld-linux-aarch64.so.1")


def host_python(root: Path) -> None:
    """Unpack a Python for this machine."""
    architecture = _ARCHITECTURES.get(os.uname().machine)
    if architecture is None:
        raise FedlearnError(f"the stand-in image cannot be made on {os.uname().machine}")
    packages = (f"python{debian.PYTHON}-minimal", f"libpython{debian.PYTHON}-stdlib")
    debian.extract(packages, architecture, root)


def compile_folders(python: Path, root: Path, folders: list[str]) -> None:
    """Compile folders of `root`, named as the device sees them; `python` is host_python's."""
    loader = next(path for each in _LOADERS for path in python.glob(each))
    libraries = [str(path) for path in python.glob("usr/lib/*-linux-gnu")]
    command: list[str | Path] = [
        loader,
        "--library-path",
        ":".join(libraries),
        python / f"usr/bin/python{debian.PYTHON}",
        *("-S", "-m", "compileall", "-q", "-s", str(root), "-p", "/"),
        # Without a look at times, which are the same for all files of an image.
        *("--invalidation-mode", "unchecked-hash"),
    ]
    environment = {"PYTHONHOME": str(python / "usr"), "PYTHONDONTWRITEBYTECODE": "1"}

    def compile_folder(folder: str) -> None:
        call([*command, f"{root}{folder}"], environment=environment)

    # compileall's own -j would start Python without its loader.
    with ThreadPoolExecutor() as pool:
        list(pool.map(compile_folder, folders))
