# SPDX-License-Identifier: Apache-2.0
"""Wheels and source archives as pip gets them, kept in build/layer-sources."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedlearn_qemu.layer.recipe import ROOT

CACHE = ROOT / "build/layer-sources"


class UnreachableError(Exception):
    """There is no package registry here, or none that answers."""


class MissingError(Exception):
    """The registry answers, but has no such file."""


@dataclass(frozen=True)
class Source:
    """A file of a registry: a wheel of a Python ("3.14") and machine, or a source archive."""

    package: str
    version: str
    python: str = ""
    machine: str = ""

    @property
    def pattern(self) -> str:
        """What its file is called."""
        name = self.package.replace("-", "_")
        if not self.python:
            return f"{name}-{self.version}.tar.gz"
        tag = "cp" + self.python.replace(".", "")
        return f"{name}-{self.version}-{tag}-{tag}-*_{self.machine}.whl"

    @property
    def options(self) -> list[str]:
        """Options of pip download."""
        if not self.python:
            return ["--no-binary", self.package]
        number = self.python.replace(".", "")
        return [
            "--only-binary=:all:",
            f"--platform=manylinux_2_27_{self.machine}",
            "--implementation=cp",
            f"--python-version={number}",
            f"--abi=cp{number}",
        ]


def pip(*words: str) -> subprocess.CompletedProcess[str]:
    """Call pip, which gives up soon where nothing answers."""
    return subprocess.run(
        [sys.executable, "-m", "pip", "--retries=1", "--timeout=20", *words],
        capture_output=True,
        text=True,
        check=False,
    )


def answers() -> bool:
    """Whether there is a registry: it must have pip itself."""
    return pip("index", "versions", "pip").returncode == 0


def fetch(source: Source, cache: Path = CACHE) -> Path:
    """The file, downloaded the first time only."""
    for path in cache.glob(source.pattern):
        return path
    cache.mkdir(parents=True, exist_ok=True)
    # Half a file must not be found by the next run.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        done = pip(
            "download",
            "--no-deps",
            f"--dest={folder}",
            *source.options,
            f"{source.package}=={source.version}",
        )
        if done.returncode != 0:
            if not answers():
                raise UnreachableError("no package registry answers")
            raise MissingError(done.stderr.strip()[-400:])
        for path in Path(folder).glob(source.pattern):
            return path.rename(cache / path.name)
        raise MissingError(f"pip gave no {source.pattern}")


def sha256(path: Path) -> str:
    """Its digest, as a recipe states it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
