# SPDX-License-Identifier: Apache-2.0
"""Deploy folders as BitBake leaves them: what of them is booted, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlearn.errors import ConfigError, MissingFileError
from fedlearn_qemu.deploy import deployed

NAME = "fedlearn-image-qemuarm64.rootfs"
CONF = """[config_bsp]
qb_system_name = qemu-system-aarch64
qb_default_kernel = Image
qb_default_fstype = wic
qb_kernel_root = /dev/vda2 ro
qb_kernel_cmdline_append = swiotlb=0
qb_machine = -machine virt
qb_cpu = -cpu cortex-a57
image_link_name = fedlearn-image-qemuarm64.rootfs
"""


def folder(tmp_path: Path, conf: str = CONF, *endings: str) -> Path:
    (tmp_path / f"{NAME}.qemuboot.conf").write_text(conf, encoding="utf-8")
    for name in ("Image", *(f"{NAME}{ending}" for ending in endings)):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_disk_boots_as_qemuboot_says(tmp_path: Path) -> None:
    image = deployed(folder(tmp_path, CONF, ".wic", ".ext4"), tmp_path / "cache")
    assert (image.kernel, image.disk) == (tmp_path / "Image", tmp_path / f"{NAME}.wic")
    assert image.append.split() == ["root=/dev/vda2", "ro", "rootwait", "swiotlb=0"]
    assert image.options == ("-machine", "virt", "-cpu", "cortex-a57")
    assert image.initrd is None


def test_what_bitbake_left_unexpanded_has_no_value(tmp_path: Path) -> None:
    """As wrynose writes it: INITRAMFS_LINK_NAME has a value in recipes of kernels alone."""
    line = (
        'qb_default_kernel = ${@bb.utils.contains("INITRAMFS_IMAGE_BUNDLE", "1", '
        '"Image-${INITRAMFS_LINK_NAME}.bin", "Image", d)}\nkernel_imagetype = Image'
    )
    conf = CONF.replace("qb_default_kernel = Image", line)
    assert deployed(folder(tmp_path, conf, ".wic"), tmp_path).kernel == tmp_path / "Image"


def test_a_root_file_system_alone_is_the_whole_disk(tmp_path: Path) -> None:
    image = deployed(folder(tmp_path, CONF, ".ext4"), tmp_path / "cache")
    assert image.disk == tmp_path / f"{NAME}.ext4"
    assert image.append.split()[0] == "root=/dev/vda"


def test_the_link_is_newer_than_what_has_a_date(tmp_path: Path) -> None:
    folder(tmp_path, CONF, ".wic")
    old = tmp_path / f"{NAME}-20260101.qemuboot.conf"
    old.write_text(CONF.replace("swiotlb=0", "old"), encoding="utf-8")
    link = tmp_path / f"{NAME}.qemuboot.conf"
    dated = link.rename(tmp_path / f"{NAME}-20260201.qemuboot.conf")
    link.symlink_to(dated.name)
    assert "swiotlb=0" in deployed(tmp_path, tmp_path / "cache").append


@pytest.mark.parametrize(
    ("conf", "endings", "error", "words"),
    [
        (CONF.replace("aarch64", "x86_64"), (".wic",), ConfigError, "x86_64"),
        (CONF.replace("[config_bsp]", "[other]"), (".wic",), ConfigError, "no .config_bsp"),
        (CONF.replace("= Image", "= zImage"), (".wic",), MissingFileError, "zImage"),
        (CONF, (), MissingFileError, "no .*wic"),
    ],
)
def test_what_cannot_boot_is_refused(
    tmp_path: Path, conf: str, endings: tuple[str, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        deployed(folder(tmp_path, conf, *endings), tmp_path / "cache")


def test_a_folder_without_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no \*\.qemuboot\.conf"):
        deployed(tmp_path, tmp_path / "cache")
