#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds an image: kas, in an environment of its own, with the recipe of a board.

`make image BOARD=... [RELEASE=wrynose|scarthgap] [IMAGE=dev|aggregator]`
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
BUILD = ROOT / "build"
# An image from scratch with rm_work; a fifth of it is downloads.
NEEDED_BYTES = 40 * 2**30


class BuildError(Exception):
    """What the person who called can mend; the text says how."""


def names(pattern: str) -> list[str]:
    """The choices that recipe files offer: boards, releases or kinds of image."""
    prefix = pattern.partition("*")[0].rpartition("/")[2]
    return sorted(path.stem.removeprefix(prefix) for path in RECIPES.glob(pattern))


def configuration(board: str, release: str, image: str) -> str:
    """The argument of kas: recipe files, of which the later ones win."""
    for what, name, choices in (
        ("BOARD", board, names("*.yml")),
        ("RELEASE", release, names("include/release-*.yml")),
        ("IMAGE", image, ["", "aggregator", "dev"]),
    ):
        if name not in choices:
            shown = ", ".join(each for each in choices if each)
            raise BuildError(f"{what}={name or ''} is not known; there are: {shown}")
    files = [RECIPES / f"{board}.yml", RECIPES / f"include/release-{release}.yml"]
    if image:
        files.append(RECIPES / f"include/{image}.yml")
    return ":".join(str(path.relative_to(ROOT)) for path in files)


def check_user(uid: int) -> None:
    """Refuse root, as BitBake does."""
    if uid == 0:
        raise BuildError("BitBake does not run as root; call make as an ordinary user")


def check_space(directory: Path, free_bytes: int) -> None:
    """Refuse what would fail after hours only."""
    if free_bytes < NEEDED_BYTES:
        raise BuildError(
            f"{directory} has {free_bytes >> 30} GiB free, an image needs "
            f"{NEEDED_BYTES >> 30}; set KAS_WORK_DIR to a folder on a larger disk"
        )


def kas() -> str:
    """The kas of this machine, or one that is installed for this build."""
    found = shutil.which("kas")
    if found:
        return found
    environment = BUILD / "kas-venv"
    program = environment / "bin/kas"
    if not program.exists():
        print("==> installing kas", flush=True)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin/pip", "install", "--quiet", "kas>=5,<6"], check=True)
    return str(program)


def main(arguments: list[str]) -> int:
    """Run the build; the arguments are board, release and kind of image."""
    board, release, image = arguments
    work = Path(os.environ.get("KAS_WORK_DIR", BUILD / f"image-{release}"))
    try:
        files = configuration(board, release, image)
        check_user(os.geteuid())
        work.mkdir(parents=True, exist_ok=True)
        check_space(work, shutil.disk_usage(work).free)
        program = kas()
    except BuildError as error:
        print(f"make image: {error}", file=sys.stderr)
        return 2
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"make image: {error}", file=sys.stderr)
        return 1
    done = subprocess.run(
        [program, "build", files],
        cwd=ROOT,
        env={**os.environ, "KAS_WORK_DIR": str(work)},
        check=False,
    )
    if done.returncode == 0:
        print(f"==> {work}/build/tmp/deploy/images/{board} (tmp-glibc on scarthgap)")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
