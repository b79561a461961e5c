# SPDX-License-Identifier: Apache-2.0
"""`make flash` refuses a disk that is in use, without a device to try it on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    """A script of recipes/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"recipes/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


flash = load("flash")
build = load("build")


def disk(path: str = "/dev/sdb", **changes: Any) -> dict[str, Any]:
    """A disk as lsblk describes it."""
    usual = {"path": path, "type": "disk", "ro": False, "size": 2**34, "mountpoints": [None]}
    return {**usual, **changes}


def part(path: str = "/dev/sdb1", **changes: Any) -> dict[str, Any]:
    return disk(path, type="part", **changes)


def test_a_free_disk_is_taken() -> None:
    flash.check_device("/dev/sdb", [disk("/dev/sda"), disk(children=[part()])])


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (disk(children=[part(mountpoints=["/mnt"])]), "/dev/sdb1 is in use at /mnt"),
        (disk(mountpoints=["/mnt"]), "in use at /mnt"),
        (disk(children=[part(mountpoints=["[SWAP]"])]), "in use at"),
        (disk(children=[part(mountpoints=["/"])]), "a disk of this system"),
        (
            disk(children=[part(children=[disk("/dev/dm-0", type="crypt", mountpoints=["/"])])]),
            "a disk of this system",
        ),
        (disk(children=[part(children=[disk("/dev/md0", type="raid1")])]), "in use .raid1."),
        (disk(ro=True), "write-protected"),
        (disk(size=0), "no medium"),
        (disk(type="rom"), "no disk but a rom"),
    ],
)
def test_a_disk_in_use_is_refused(found: dict[str, Any], reason: str) -> None:
    with pytest.raises(flash.FlashError, match=reason):
        flash.check_device("/dev/sdb", [found])


def test_a_partition_is_refused_by_the_name_of_its_disk() -> None:
    with pytest.raises(flash.FlashError, match="a part of /dev/sdb; give the whole disk"):
        flash.check_device("/dev/sdb1", [disk(children=[part()])])


def test_an_unknown_device_lists_the_disks() -> None:
    with pytest.raises(flash.FlashError, match="there are: /dev/sdb"):
        flash.check_device("/dev/sdz", [disk(), disk("/dev/sr0", type="rom")])


def test_a_file_is_no_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "card").touch()
    assert flash.main(["qemuarm64", str(tmp_path / "card")]) == 2
    assert "is no block device" in capsys.readouterr().err


def test_the_newest_image_is_taken(tmp_path: Path) -> None:
    with pytest.raises(flash.FlashError, match="make image BOARD=raspberrypi5"):
        flash.find_image("raspberrypi5", tmp_path)
    folder = tmp_path / "image-wrynose/build/tmp/deploy/images/raspberrypi5"
    folder.mkdir(parents=True)
    (folder / "fedlearn-image-20260101.wic.zst").touch()
    link = folder / "fedlearn-image-raspberrypi5.rootfs.wic.zst"
    link.symlink_to("fedlearn-image-20260101.wic.zst")
    assert flash.find_image("raspberrypi5", tmp_path) == link


def test_every_board_and_release_has_its_files() -> None:
    for board in build.names("*.yml"):
        for release in build.names("include/release-*.yml"):
            for image in ("", "dev", "aggregator"):
                files = build.configuration(board, release, image).split(":")
                assert all((ROOT / name).is_file() for name in files)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("toaster", "wrynose", ""), "BOARD=toaster is not known; there are: .*raspberrypi5"),
        (("qemuarm64", "dunfell", ""), "RELEASE=dunfell is not known; there are: scarthgap"),
        (("qemuarm64", "wrynose", "sato"), "IMAGE=sato is not known; there are: aggregator, dev"),
    ],
)
def test_unknown_names_list_what_there_is(arguments: tuple[str, str, str], reason: str) -> None:
    with pytest.raises(build.BuildError, match=reason):
        build.configuration(*arguments)


def test_root_and_a_full_disk_are_refused() -> None:
    with pytest.raises(build.BuildError, match="does not run as root"):
        build.check_user(0)
    build.check_user(1000)
    with pytest.raises(build.BuildError, match="3 GiB free, an image needs 40"):
        build.check_space(Path("build"), 3 * 2**30)
    build.check_space(Path("build"), 2**40)
