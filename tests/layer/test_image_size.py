# SPDX-License-Identifier: Apache-2.0
"""The measuring of BitBake's images, on a folder as BitBake leaves it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fedlearn.errors import MissingFileError
from fedlearn_qemu import tools
from tests.layer.image_size import main, measure, used_bytes

NAME = "fedlearn-image-qemuarm64.rootfs"
SECTOR = 512
STARTS_KIB = (4096, 8192, 12288)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two packages, and a disk of three partitions whose second is a file system with a file."""
    deploy = tmp_path / "tmp/deploy/images/qemuarm64"
    deploy.mkdir(parents=True)
    dated = deploy / f"{NAME}-2026.manifest"
    dated.write_text("small aarch64 1.0\nlarge aarch64 2.0\n", "utf-8")
    (deploy / f"{NAME}.manifest").symlink_to(dated.name)
    runtime = tmp_path / "tmp/pkgdata/qemuarm64/runtime-reverse"
    runtime.mkdir(parents=True)
    for name, taken in (("small", 1000), ("large", 3_000_000)):
        text = f"PN: {name}\nPKGSIZE:{name}: {taken}\nFILES:{name}: x\n"
        (runtime / name).write_text(text, "utf-8")
    disk = deploy / f"{NAME}.wic"
    disk.touch()
    with disk.open("r+b") as stream:
        stream.truncate(STARTS_KIB[-1] * 1024 + (4 << 20))
    script = "label: dos\n" + "".join(f"start={each * 2}, size=8192\n" for each in STARTS_KIB)
    subprocess.run(["sfdisk", "-q", disk], input=script, text=True, check=True)
    files = tmp_path / "root"
    files.mkdir()
    (files / "x").write_bytes(b"x" * 1_000_000)
    offset = STARTS_KIB[1] * 1024
    make = ["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-d", str(files)]
    subprocess.run([*make, "-E", f"offset={offset}", str(disk), "4096k"], check=True)
    (deploy / f"{NAME}.wic.zst").write_bytes(b"z" * 1234)
    return deploy


def test_packages_and_file_system_are_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = measure(folder)
    assert size.largest(1) == [("large", 3_000_000)]
    assert size.packed_bytes == 1234
    assert 1_000_000 < size.root_used_bytes < 4_000_000
    assert main([str(folder)]) == 0
    assert "large" in capsys.readouterr().out


@pytest.mark.skipif(bool(tools.missing(["zstd"])), reason="zstd missing (apt install zstd)")
def test_a_board_has_the_compressed_image_alone(folder: Path) -> None:
    """As Raspberry Pi's machines do, behind a link."""
    known = measure(folder)
    disk, link = folder / f"{NAME}.wic", folder / f"{NAME}.wic.zst"
    packed = folder / f"{NAME}-2026.wic.zst"
    subprocess.run(["zstd", "-q", "-1", disk, "-o", packed], check=True)
    link.unlink()
    link.symlink_to(packed.name)
    disk.unlink()
    assert measure(folder).root_used_bytes == known.root_used_bytes
    assert measure(folder).packed_bytes == packed.stat().st_size


def test_blocks_that_are_free_do_not_count() -> None:
    header = "Block count:              100\nFree blocks:              40\nBlock size:    1024\n"
    assert used_bytes(header) == 60 * 1024


def test_a_folder_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingFileError):
        measure(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert "manifest" in capsys.readouterr().err


def test_a_package_without_data_is_told(folder: Path) -> None:
    """Control: sizes are never guessed."""
    (folder.parents[2] / "pkgdata/qemuarm64/runtime-reverse/small").unlink()
    with pytest.raises(MissingFileError, match="small"):
        measure(folder)
