# SPDX-License-Identifier: Apache-2.0
"""The installed size of every package that the layer adds: `python -m tests.layer.size`.

By the recipes' own do_install and FILES, on the wheels and archives that they name.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fedlearn_qemu.layer.install import Target, blocks_bytes, install, part, size_bytes
from fedlearn_qemu.layer.recipe import PYTHONS, ROOT, read, recipes
from fedlearn_qemu.layer.registry import UnreachableError

JSON = ROOT / "build/layer-check/size.json"


@dataclass(frozen=True)
class Size:
    """What one package takes; `blocks_bytes` in blocks of 4 KiB."""

    release: str
    package: str
    files: int
    bytes: int
    blocks_bytes: int


def sizes(release: str, machine: str = "aarch64") -> Iterator[Size]:
    """One entry for each package that has files."""
    target = Target(release, machine)
    with tempfile.TemporaryDirectory() as folder:
        for path in recipes():
            recipe = read(path)
            if not any(name.startswith("do_") for name in recipe.functions):
                continue  # images and package groups have no files
            image = install(recipe, target, Path(folder) / recipe.name)
            for package, paths in part(recipe, target, image).items():
                yield Size(release, package, len(paths), size_bytes(paths), blocks_bytes(paths))


def table(found: list[Size]) -> str:
    """For people."""
    lines = [f"{'package':<32}{'release':<11}{'files':>6}{'kB':>9}{'kB in blocks':>14}"]
    lines += [
        f"{each.package:<32}{each.release:<11}{each.files:>6}{each.bytes / 1000:>9.1f}"
        f"{each.blocks_bytes / 1000:>14.1f}"
        for each in found
    ]
    for release in dict.fromkeys(each.release for each in found):
        mine = [each for each in found if each.release == release]
        lines.append(
            f"{'all':<32}{release:<11}{sum(each.files for each in mine):>6}"
            f"{sum(each.bytes for each in mine) / 1000:>9.1f}"
            f"{sum(each.blocks_bytes for each in mine) / 1000:>14.1f}"
        )
    return "\n".join(lines)


def write(found: list[Size], path: Path) -> None:
    """For programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n", "utf-8")


def main(arguments: list[str]) -> int:
    """Measure, print and write."""
    words = argparse.ArgumentParser(prog="python -m tests.layer.size", description=__doc__)
    words.add_argument("--json", type=Path, default=JSON)
    words.add_argument("--machine", choices=("aarch64", "x86_64"), default="aarch64")
    given = words.parse_args(arguments)
    try:
        found = [each for release in PYTHONS for each in sizes(release, given.machine)]
    except UnreachableError as error:
        print(f"size: {error}", file=sys.stderr)
        return 1
    print(table(found))
    write(found, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
