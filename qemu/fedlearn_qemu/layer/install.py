# SPDX-License-Identifier: Apache-2.0
"""Runs a recipe's own do_install without BitBake, and parts the files into its packages.

What is pruned, renamed or generated is therefore what the recipe says, not a copy of it. Compiled
Python is measured with the bytecode of this Python, some percent off the release's.
"""

from __future__ import annotations

import compileall
import configparser
import fnmatch
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fedlearn_qemu.layer import registry
from fedlearn_qemu.layer.recipe import FOLDERS, PYTHONS, ROOT, Recipe, RecipeError

# What pip writes as a script's text; the installer of the releases writes nearly the same.
SCRIPT = "#!/usr/bin/env python3\nimport sys\nfrom {module} import {name}\nsys.exit({name}())\n"


@dataclass(frozen=True)
class Target:
    """For what a recipe is built."""

    release: str
    machine: str = "aarch64"

    @property
    def python(self) -> str:
        """Its Python, such as "3.14"."""
        return PYTHONS[self.release]

    @property
    def site_packages(self) -> str:
        """Where its Python looks for packages."""
        return f"{FOLDERS['libdir']}/python{self.python}/site-packages"


def variables(recipe: Recipe, target: Target, work: Path) -> dict[str, str]:
    """What BitBake and its classes would set."""
    unpack = work / "sources"
    pypi_name = recipe.values.get("PYPI_PACKAGE", recipe.name.removeprefix("python3-"))
    source = f"{pypi_name}-{recipe.version}" if "pypi" in recipe.inherits else "${BP}"
    return {
        "D": str(work / "image"),
        "UNPACKDIR": str(unpack),
        "WORKDIR": str(work),
        "S": recipe.values.get("S", f"{unpack}/{source}"),
        "TARGET_ARCH": target.machine,
        "PYTHON_BASEVERSION": target.python,
        "PYTHON_TAG": "cp" + target.python.replace(".", ""),
        "PYTHON_SITEPACKAGES_DIR": target.site_packages,
    }


def shell(recipe: Recipe, function: str, known: dict[str, str]) -> None:
    """Run a shell function of a recipe as BitBake does: its variables are expanded before."""
    body = recipe.expand(recipe.functions.get(function, ""), **known)
    if "${@" in body:
        raise RecipeError(f"{recipe.path.name}: {function} has inline Python")
    folder = Path(recipe.expand(known["S"], **known))
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["sh", "-e"], input=body, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RecipeError(f"{recipe.path.name}: {function}: {done.stderr.strip()[-400:]}")


def unpack(recipe: Recipe, target: Target, known: dict[str, str]) -> None:
    """Put the sources where do_unpack puts them."""
    folder = Path(known["UNPACKDIR"])
    folder.mkdir(parents=True)
    for name, path in recipe.local_files().items():
        word = next(each for each in recipe.words("SRC_URI") if f"//{name}" in each.split(";")[0])
        place = folder / word.partition(";subdir=")[2] / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, place, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(path, place)
    if "pypi" in recipe.inherits:
        archive = registry.fetch(source_of(recipe, target))
        if archive.suffix == ".whl":
            zipfile.ZipFile(archive).extractall(folder)  # noqa: S202 - a wheel of a registry
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")


def source_of(recipe: Recipe, target: Target) -> registry.Source:
    """What a recipe of the pypi class downloads: a wheel if it names one, else the archive."""
    package = recipe.values.get("PYPI_PACKAGE", recipe.name.removeprefix("python3-"))
    package = package.replace("_", "-")
    if "WHEEL" in recipe.values:
        return registry.Source(package, recipe.version, target.python, target.machine)
    return registry.Source(package, recipe.version)


def install_wheel(recipe: Recipe, target: Target, known: dict[str, str]) -> None:
    """What python_pep517's do_compile and do_install do, with this machine's setuptools."""
    work = Path(known["WORKDIR"])
    source = recipe.expand(known["S"], **known)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", f"-w{work}/wheel", source],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        if not registry.answers():
            raise registry.UnreachableError("no package registry answers, for setuptools")
        raise RecipeError(f"{recipe.path.name}: {done.stderr.strip()[-400:]}")
    (wheel,) = (work / "wheel").glob("*.whl")
    place = Path(known["D"] + target.site_packages)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)  # noqa: S202 - a wheel that pip just built
    points = configparser.ConfigParser()
    points.read(place.glob("*.dist-info/entry_points.txt"))
    if points.has_section("console_scripts"):
        scripts(known, dict(points["console_scripts"]))


def scripts(known: dict[str, str], points: dict[str, str]) -> None:
    """The commands of a wheel."""
    folder = Path(known["D"] + FOLDERS["bindir"])
    folder.mkdir(parents=True, exist_ok=True)
    for command, point in points.items():
        module, _, name = point.partition(":")
        (folder / command).write_text(SCRIPT.format(module=module, name=name), "utf-8")
        (folder / command).chmod(0o755)


def empty_wheel(target: Target, known: dict[str, str]) -> None:
    """What do_install looks for in our own wheel: its commands, and empty folders."""
    names = ("fedlearn", "fedlearn-aggregator", "fedlearn-demo", "fedlearn-qemu")
    scripts(known, dict.fromkeys(names, "none:none"))
    for folder in ("fedlearn", "fedlearn_aggregator", "fedlearn.dist-info"):
        Path(f"{known['D']}{target.site_packages}/{folder}").mkdir(parents=True)


def install(
    recipe: Recipe, target: Target, work: Path, *, wheel: bool = True, compiled: bool = True
) -> Path:
    """Install a recipe and return the folder that holds its files, as ${D}.

    Without `wheel` a Python project gets its commands alone: enough for what units need, and
    no registry is asked. `compiled` is with the bytecode of this Python.
    """
    known = variables(recipe, target, work)
    (work / "image").mkdir(parents=True)
    unpack(recipe, target, known)
    if "do_configure" in recipe.functions:
        shell(recipe, "do_configure", known)
    if "python_setuptools_build_meta" in recipe.inherits:
        if wheel:
            install_wheel(recipe, target, known)
        else:
            empty_wheel(target, known)
    if "do_install" in recipe.functions:
        shell(recipe, "do_install", known)
    if compiled:
        compileall.compile_dir(work / "image", quiet=2, stripdir=str(work / "image"))
    return work / "image"


def files(image: Path) -> list[Path]:
    """Files and links of an installed recipe."""
    return sorted(path for path in image.rglob("*") if path.is_symlink() or path.is_file())


def part(recipe: Recipe, target: Target, image: Path) -> dict[str, list[Path]]:
    """Files by package, in the order of PACKAGES; the last one gets the rest."""
    known = {"PYTHON_SITEPACKAGES_DIR": target.site_packages}
    written = {recipe.expand(name): name for name in recipe.values}
    left = files(image)
    parted: dict[str, list[Path]] = {}
    for package in recipe.packages():
        patterns = recipe.words(written.get(f"FILES:{package}", ""), **known)
        if package == recipe.name:
            patterns = ["*"]
        parted[package] = [path for path in left if matches(path.relative_to(image), patterns)]
        left = [path for path in left if path not in parted[package]]
    return parted


def matches(path: Path, patterns: list[str]) -> bool:
    """Whether FILES has a file, or a folder that it is in."""
    names = [f"/{path}", *(f"/{each}" for each in path.parents)]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def size_bytes(paths: list[Path]) -> int:
    """What files take, without links."""
    return sum(path.stat().st_size for path in paths if not path.is_symlink())


def blocks_bytes(paths: list[Path]) -> int:
    """What they take in a file system with blocks of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in paths if not path.is_symlink())


def relative(path: Path) -> str:
    """A path within the project, for messages."""
    return os.path.relpath(path, ROOT)
