# SPDX-License-Identifier: Apache-2.0
"""What the client imports, as wheels for aarch64; the runtime as the layer's recipe prunes it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from fedlearn.errors import FedlearnError
from fedlearn_qemu.layer.install import install
from fedlearn_qemu.layer.recipe import find
from fedlearn_qemu.standin import debian
from fedlearn_qemu.standin.layer import Debian

# What zeroconf imports beside the client's own four.
_PACKAGES = ("numpy>=2,<3", "cbor2>=5.6", "pyserial>=3.5", "ifaddr")
_RUNTIME = "python3-ai-edge-litert"
_ZEROCONF = "python3-zeroconf"
_PRUNED = (
    "numpy/tests",
    "numpy/*/tests",
    "numpy/f2py",
    "numpy/_core/include",
    "*.dist-info/RECORD",
)


def inputs() -> list[str]:
    """What the digest of the image has to know."""
    return [*_PACKAGES, *(f"{name} {find(name).version}" for name in (_RUNTIME, _ZEROCONF))]


def add(root: Path) -> None:
    """Install them into `root`."""
    place = root / debian.PYTHON_PACKAGES.lstrip("/")
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _download(folder / "wheels", [*_PACKAGES, f"zeroconf=={find(_ZEROCONF).version}"])
        for wheel in (folder / "wheels").glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(place)
        runtime = install(find(_RUNTIME), Debian(), folder / "runtime", compiled=False)
        shutil.copytree(runtime, root, dirs_exist_ok=True)
    for pattern in _PRUNED:
        for path in place.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _download(folder: Path, packages: list[str]) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 31, 34, 39)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--only-binary=:all:", f"--dest={folder}", *platforms),
            *(f"--python-version={debian.PYTHON.replace('.', '')}", "--implementation=cp"),
            *packages,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FedlearnError(f"pip download failed: {done.stderr.strip()[-400:]}")
