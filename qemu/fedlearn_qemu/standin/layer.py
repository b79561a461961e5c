# SPDX-License-Identifier: Apache-2.0
"""What the layer puts into an image: run its recipes' own do_install, and do its classes' work.

No file of the layer is copied by name here: which packages the image has, their files, users and
enabled units are what the recipes say.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedlearn_qemu.layer.install import Target, install, part
from fedlearn_qemu.layer.recipe import LAYER, Recipe, read, recipes
from fedlearn_qemu.layer.wks import Disk
from fedlearn_qemu.layer.wks import read as read_wks
from fedlearn_qemu.standin import debian
from fedlearn_qemu.standin.users import Accounts, add_useradd

IMAGE = "fedlearn-image"
MACHINE = "qemuarm64"
_IMAGES = LAYER / "recipes-fedlearn/images"
# OE-core's overlayfs-etc class generates it from the image's variables.
_PREINIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
if mount -n -t {OVERLAYFS_ETC_FSTYPE} -o {OVERLAYFS_ETC_MOUNT_OPTIONS} \\
    {OVERLAYFS_ETC_DEVICE} {OVERLAYFS_ETC_MOUNT_POINT}
then
    base={OVERLAYFS_ETC_MOUNT_POINT}/overlay-etc
    mkdir -p $base/upper $base/work
    mount -n -t overlay -o upperdir=$base/upper -o lowerdir=/etc -o workdir=$base/work \\
        -o index=off,xino=off,redirect_dir=off,metacopy=off $base/upper /etc
fi
exec /sbin/init.orig
"""


@dataclass(frozen=True)
class Debian(Target):
    """Debian's Python in place of a release's."""

    release: str = "wrynose"

    @property
    def python(self) -> str:
        """Its Python."""
        return debian.PYTHON

    @property
    def site_packages(self) -> str:
        """Where Debian's Python looks for packages."""
        return debian.PYTHON_PACKAGES


def image_recipe() -> Recipe:
    """The recipe of the image, with what it requires."""
    return read(_IMAGES / f"{IMAGE}.bb")


def disk() -> Disk:
    """The partitions that it has in QEMU."""
    return read_wks(_IMAGES / image_recipe().values["WKS_FILE:qemuall"])


def packages() -> dict[str, Recipe]:
    """The layer's packages in the image, with their recipes."""
    makers = {
        package: recipe
        for path in recipes()
        for recipe in [read(path)]
        for package in recipe.packages()
    }
    wanted = [word for word in image_recipe().words("IMAGE_INSTALL") if word in makers]
    found: dict[str, Recipe] = {}
    while wanted:
        name = wanted.pop()
        if name not in found and name in makers:
            found[name] = makers[name]
            wanted += makers[name].rdepends(name)
    # Third parties' are Debian's or PyPI's here.
    return {
        name: recipe for name, recipe in found.items() if "recipes-fedlearn" in str(recipe.path)
    }


def add(root: Path, accounts: Accounts) -> None:
    """Install the layer's packages into `root`, with their users, and enable their units."""
    target = Debian()
    chosen = packages()
    with tempfile.TemporaryDirectory() as scratch:
        by_recipe = {recipe.name: recipe for recipe in chosen.values()}
        for recipe in by_recipe.values():
            image = install(recipe, target, Path(scratch) / recipe.name, compiled=False)
            for package, paths in part(recipe, target, image).items():
                if package in chosen:
                    _copy(paths, image, root)
                    _add_users(recipe, package, accounts)
                    _enable(recipe, package, root)


def _copy(paths: list[Path], image: Path, root: Path) -> None:
    for folder in (each for each in image.rglob("*") if each.is_dir() and not any(each.iterdir())):
        (root / folder.relative_to(image)).mkdir(parents=True, exist_ok=True)
    for path in paths:
        to = root / path.relative_to(image)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, to, follow_symlinks=False)


def _value(recipe: Recipe, variable: str, package: str) -> str:
    written = {recipe.expand(name): name for name in recipe.values}
    return recipe.expand(recipe.values.get(written.get(f"{variable}:{package}", ""), ""))


def _add_users(recipe: Recipe, package: str, accounts: Accounts) -> None:
    for words in filter(None, _value(recipe, "USERADD_PARAM", package).split(";")):
        add_useradd(accounts, words)
    for words in filter(None, _value(recipe, "GROUPADD_PARAM", package).split(";")):
        accounts.group(words.split()[-1])


def _enable(recipe: Recipe, package: str, root: Path) -> None:
    for unit in _value(recipe, "SYSTEMD_SERVICE", package).split():
        enable(root, unit)


def enable(root: Path, unit: str) -> None:
    """What `systemctl enable` does: links as the unit's [Install] says."""
    text = (root / "usr/lib/systemd/system" / unit).read_text("utf-8")
    for targets in re.findall(r"^WantedBy=(.+)$", text, re.M):
        for target in targets.split():
            folder = root / f"etc/systemd/system/{target}.wants"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")


def overlay_etc(root: Path) -> None:
    """Put the script that mounts /etc before init, as the class overlayfs-etc does."""
    values = {"OVERLAYFS_ETC_MOUNT_OPTIONS": "defaults", **image_recipe().values}
    init = root / "usr/sbin/init"
    init.rename(init.with_name("init.orig"))
    init.write_text(_PREINIT.format_map(values), "utf-8")
    init.chmod(0o755)


def fstab() -> str:
    """The table of file systems as wic completes OE-core's, for a read-only root."""
    lines = ["/dev/root / auto ro 0 0", "tmpfs /var/volatile tmpfs defaults 0 0"]
    for number, each in enumerate(disk().partitions, 1):
        if each.mountpoint not in (None, "/"):
            device = f"LABEL={each.label}" if each.use_label else f"/dev/{each.ondisk}{number}"
            options = each.fsoptions or "defaults"
            lines.append(f"{device} {each.mountpoint} {each.fstype} {options} 0 0")
    return "\n".join(lines) + "\n"
