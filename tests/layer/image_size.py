# SPDX-License-Identifier: Apache-2.0
"""The size of an image that BitBake built: `python -m tests.layer.image_size <deploy folder>`.

The folder is .../tmp/deploy/images/<machine>. Packages are told apart by BitBake's own pkgdata,
which is beside it in tmp; the root file system is measured in the image.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedlearn.errors import FedlearnError, MissingFileError
from fedlearn_qemu import card, tools

MOST = 15
# Partitions of the layer's images: boot, root, data.
ROOT_PARTITION = 1


@dataclass(frozen=True)
class ImageSize:
    """What an image takes, in bytes; `packages` are what their files add up to."""

    name: str
    packages: dict[str, int]
    root_used_bytes: int
    disk_bytes: int
    packed_bytes: int

    def largest(self, most: int = MOST) -> list[tuple[str, int]]:
        """The largest packages, largest first."""
        return sorted(self.packages.items(), key=lambda each: (-each[1], each[0]))[:most]


def measure(folder: Path, pkgdata: Path | None = None) -> ImageSize:
    """Measure the image in a deploy folder. Raises MissingFileError."""
    manifest = find_manifest(folder)
    name = manifest.name.removesuffix(".manifest")
    data = pkgdata or folder.parents[2] / "pkgdata" / folder.name
    packages = {each: package_bytes(data, each) for each in listed(manifest)}
    packed = folder / f"{name}.wic.zst"
    with tempfile.TemporaryDirectory() as scratch:
        disk = folder / f"{name}.wic"
        if not disk.is_file():
            disk = Path(scratch) / disk.name
            tools.require(("zstd",))
            tools.call(["zstd", "-q", "-d", packed.resolve(), "-o", disk])
        root = card.partitions(disk)[ROOT_PARTITION]
        used = used_bytes(tools.call(["dumpe2fs", "-h", f"{disk}?offset={root.offset_bytes}"]))
        whole = disk.stat().st_size
    return ImageSize(name, packages, used, whole, packed.stat().st_size if packed.exists() else 0)


def find_manifest(folder: Path) -> Path:
    """The newest image's list of packages: the link without a date."""
    found = [path for path in folder.glob("*.manifest") if path.is_file()]
    if not found:
        raise MissingFileError(
            f"{folder} has no *.manifest",
            hint="name BitBake's deploy folder: .../tmp/deploy/images/<machine>",
        )
    return min(found, key=lambda each: (not each.is_symlink(), each.name))


def listed(manifest: Path) -> list[str]:
    """The packages of a manifest, which has one a line: name, architecture, version."""
    return [line.split()[0] for line in manifest.read_text("utf-8").splitlines() if line.strip()]


def package_bytes(pkgdata: Path, package: str) -> int:
    """What the files of an installed package add up to, by its name in the image."""
    path = pkgdata / "runtime-reverse" / package
    if not path.is_file():
        raise MissingFileError(f"{path} is not there", hint="give --pkgdata <tmp/pkgdata/machine>")
    found = re.search(r"^PKGSIZE:\S+: (\d+)$", path.read_text("utf-8"), re.M)
    return int(found[1]) if found else 0


def used_bytes(header: str) -> int:
    """Blocks that are not free, from what dumpe2fs -h prints."""
    fields = dict(re.findall(r"^([^:\n]+):\s+(\d+)$", header, re.M))
    blocks = int(fields["Block count"]) - int(fields["Free blocks"])
    return blocks * int(fields["Block size"])


def table(size: ImageSize) -> str:
    """For people, in MB."""
    lines = [size.name, f"{'package':<36}{'MB':>7}"]
    lines += [f"{name:<36}{taken / 1e6:>7.2f}" for name, taken in size.largest()]
    every = f"all {len(size.packages)} packages"
    lines += [
        f"{every:<36}{sum(size.packages.values()) / 1e6:>7.2f}",
        f"{'root file system':<36}{size.root_used_bytes / 1e6:>7.2f}",
        f"{'image':<36}{size.disk_bytes / 1e6:>7.2f}",
        f"{'image, compressed':<36}{size.packed_bytes / 1e6:>7.2f}",
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure, print, and write where --json says."""
    words = argparse.ArgumentParser(prog="python -m tests.layer.image_size", description=__doc__)
    words.add_argument("folder", type=Path, help="BitBake's deploy folder")
    words.add_argument("--pkgdata", type=Path, help="by default found from the folder")
    words.add_argument("--json", type=Path)
    given = words.parse_args(arguments)
    try:
        size = measure(given.folder.resolve(), given.pkgdata)
    except FedlearnError as error:
        print(f"image_size: {error}", file=sys.stderr)
        return 2
    print(table(size))
    if given.json:
        values = {**vars(size), "packages": dict(size.largest(len(size.packages)))}
        given.json.write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
