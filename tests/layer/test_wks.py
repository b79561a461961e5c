# SPDX-License-Identifier: Apache-2.0
"""Partitions: as wic reads them, and as the image recipes and the start scripts expect them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn_qemu.layer.recipe import LAYER, read
from fedlearn_qemu.layer.wks import WksError
from fedlearn_qemu.layer.wks import read as read_wks
from tests.layer.real import Release

IMAGES = LAYER / "recipes-fedlearn/images"
FILES = sorted(LAYER.rglob("*.wks"))
IDS = [path.name for path in FILES]
# It asks BitBake for APPEND, which no image of ours sets.
WIC = """
import sys
from wic import ksparser
ksparser.get_bitbake_var = lambda *_: None
print(len(ksparser.KickStart(sys.argv[1]).partitions))
"""


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_disk_is_boot_root_and_data(path: Path) -> None:
    boot, root, data = read_wks(path).partitions
    assert boot.mountpoint == "/boot"
    assert boot.fstype == "vfat"
    assert "ro" in boot.fsoptions.split(",")
    assert "nofail" in boot.fsoptions.split(",")  # a device without it still boots
    assert (root.mountpoint, root.source, root.fstype) == ("/", "rootfs", "ext4")
    assert "^has_journal" in root.mkfs_extraopts
    # Found by its label by the class overlayfs-etc; mounted by nothing of wic's.
    image = read(IMAGES / "fedlearn-image.bb")
    assert image.values["OVERLAYFS_ETC_DEVICE"] == f"LABEL={data.label}"
    assert image.values["OVERLAYFS_ETC_FSTYPE"] == data.fstype
    assert data.mountpoint is None
    # It grows into what is behind it, so it is the last one, and as small as it may be.
    assert data.fixed_size <= 64 * 1024
    assert len({each.ondisk for each in (boot, root, data)}) == 1
    # A card's erase block; a partition that is not aligned to it wears it out sooner.
    assert all(each.align == 4096 for each in (boot, root, data))


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_the_data_partition_can_grow(path: Path) -> None:
    """resize= counts blocks: 4 KiB each, up to 1 TiB."""
    data = read_wks(path).partitions[-1]
    assert "-b 4096" in data.mkfs_extraopts
    assert "resize=268435456" in data.mkfs_extraopts


def test_the_root_has_nothing_below_the_boot_partition(tmp_path: Path) -> None:
    """Packages of kernel modules bring the kernel's image along, to /boot."""
    text = (IMAGES / "fedlearn-image.inc").read_text("utf-8")
    body = re.search(r"^fedlearn_empty_boot\(\) \{\n(.*?)^\}$", text, re.M | re.S)
    assert body
    assert 'ROOTFS_POSTPROCESS_COMMAND += "fedlearn_empty_boot"' in text
    for name in ("boot/Image-6.18", "boot/dtb/board.dtb", "usr/lib/modules/a.ko"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["sh", "-eu", "-c", body[1]], env={"IMAGE_ROOTFS": str(tmp_path)}, check=True)
    assert sorted(each.name for each in tmp_path.rglob("*") if not each.is_dir()) == ["a.ko"]
    assert (tmp_path / "boot").is_dir()  # it is mounted there


def test_every_file_is_used_and_every_used_one_is_there() -> None:
    image = read(IMAGES / "fedlearn-image.bb")
    named = {value for name, value in image.values.items() if name.split(":")[0] == "WKS_FILE"}
    assert named == set(IDS)
    assert all((IMAGES / name).is_file() for name in named)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_a_disk_with_a_boot_loader_has_one_built(path: Path) -> None:
    """By default WKS_FILE_DEPENDS is grub, systemd-boot, syslinux and file systems."""
    image = read(IMAGES / "fedlearn-image.bb")
    name = next(each for each, value in image.values.items() if value == path.name)
    depends = image.values.get(name.replace("WKS_FILE", "WKS_FILE_DEPENDS"))
    loader = (read_wks(path).partitions[0].source or "").startswith("bootimg-efi")
    assert depends == (None if loader else "e2fsprogs-native")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("part / --sorce rootfs", "--sorce"),
        ("part / --fstype=ext5", "invalid choice"),
        ("part / --fixed-size 64Q", "64Q is no size"),
        ("part / --size 1M --fixed-size 2M", "not allowed with"),
        ("part / --use-label", "without --label"),
        ("partition /", "no command"),
        ('part / --label "a', "No closing quotation"),
        ("part / --align 4k", "invalid int"),
        ("bootloader --ptable mbr", "invalid choice"),
        ("", "0 lines of bootloader"),
    ],
)
def test_a_wrong_line_would_be_found(tmp_path: Path, line: str, complaint: str) -> None:
    """Control."""
    path = tmp_path / "x.wks"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(WksError, match=complaint):
        read_wks(path)


def wic(core: Path, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WIC, str(path)],
        env={"PYTHONPATH": f"{core}/scripts/lib:{core}/meta/lib", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_wic_itself_reads_them(oe: list[Release], tmp_path: Path) -> None:
    """Releases from 6.0 on have wic elsewhere."""
    cores = [each.path / "openembedded-core" for each in oe]
    cores = [core for core in cores if (core / "scripts/lib/wic/ksparser.py").is_file()]
    if not cores:
        pytest.skip("wic is not in these checkouts: OE needs scarthgap's openembedded-core")
    bad = tmp_path / "bad.wks"
    bad.write_text("part / --sorce rootfs\n", encoding="utf-8")
    for core in cores:
        for path in FILES:
            done = wic(core, path)
            assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
        assert wic(core, bad).returncode != 0  # control
