# SPDX-License-Identifier: Apache-2.0
"""Debian's packages, unpacked by mmdebstrap without running any of their scripts."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedlearn_qemu.tools import call

SUITE = "trixie"
PYTHON = "3.13"
# Where the packages of that Python are.
PYTHON_PACKAGES = "/usr/lib/python3/dist-packages"
KERNEL = "linux-image-cloud-arm64"
PACKAGES = (
    "base-files",
    "base-passwd",
    "bash",
    "busybox-static",
    "coreutils",
    "dash",
    "diffutils",
    "fdisk",
    "findutils",
    "grep",
    "hostname",
    "kmod",
    "libgcc-s1",
    "libstdc++6",
    KERNEL,
    "mount",
    "netbase",
    "openssl",
    "procps",
    "python3-minimal",
    f"python{PYTHON}",
    "sed",
    "systemd",
    "systemd-sysv",
    "udev",
    "util-linux",
)
# Drivers that QEMU's machine and the layer's partitions ask for; what they need comes with them.
MODULES = ("virtio_blk", "virtio_net", "virtio-rng", "overlay", "vfat", "nls_*", "zram", "softdog")
_PRUNED = (
    "boot/*",
    "dev/*",
    "etc/apt",
    "etc/cron*",
    "etc/dpkg",
    "etc/fstab",
    "etc/init.d",
    "etc/initramfs-tools",
    "etc/kernel",
    "etc/rc*.d",
    "proc/*",
    "run/*",
    "sys/*",
    "tmp/*",
    "usr/bin/perl*",
    "usr/games",
    "usr/include",
    "usr/lib/*/gconv",
    "usr/lib/*/perl*",
    "usr/lib/apt",
    "usr/lib/dpkg",
    "usr/lib/dracut",
    "usr/lib/klibc*",
    "usr/lib/python3*/__pycache__",
    "usr/lib/python3*/ensurepip",
    "usr/lib/python3*/idlelib",
    "usr/lib/python3*/lib2to3",
    "usr/lib/python3*/pydoc_data",
    "usr/lib/python3*/test",
    "usr/lib/python3*/turtledemo",
    "usr/lib/systemd/system-generators/systemd-gpt-auto-generator",
    "usr/lib/udev/hwdb*",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc*",
    "usr/share/i18n",
    "usr/share/info",
    "usr/share/initramfs-tools",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
    "usr/share/mime",
    "usr/share/perl*",
    "usr/share/zsh",
    "var/cache/*",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/log/*",
)


def mirror() -> list[str]:
    """The Debian mirror that this machine's apt uses; where it uses none, mmdebstrap knows one."""
    codename = ""
    release = Path("/etc/os-release").read_text("utf-8").splitlines()
    for line in release:
        if line.startswith("VERSION_CODENAME="):
            codename = line.partition("=")[2].strip('"')
    if "ID=debian" not in release or shutil.which("apt-get") is None:
        return []
    form = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    listed = call(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    for line in listed.splitlines():
        suite, component, address = line.split()
        if (suite, component) == (codename, "main"):
            return [address]
    return []


def extract(packages: tuple[str, ...], architecture: str, root: Path) -> None:
    """Unpack packages, and what they depend on, into a new folder."""
    # Nothing of Debian's keyring may be here, as on another distribution.
    call(
        [
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=extract",
            f"--architectures={architecture}",
            "--components=main",
            f"--include={','.join(packages)}",
            SUITE,
            root,
            *mirror(),
        ]
    )


def prune(root: Path) -> None:
    """Remove what no device uses: it costs time when the image is made, copied and booted."""
    for pattern in _PRUNED:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def take_kernel(root: Path, target: Path) -> None:
    """Move the kernel out; QEMU loads it."""
    (image,) = root.glob("boot/vmlinuz-*")
    image.rename(target)


def keep_modules(root: Path) -> None:
    """Keep the drivers of `MODULES` and what they need, and index them for modprobe."""
    (folder,) = root.glob("usr/lib/modules/*")
    call(["depmod", "-b", root, folder.name])
    needs = {}
    for line in (folder / "modules.dep").read_text("utf-8").splitlines():
        name, _, others = line.partition(":")
        needs[name] = others.split()
    kept: set[str] = set()
    for name, required in needs.items():
        stem = Path(name).name.partition(".")[0]
        if any(Path(stem).match(pattern) for pattern in MODULES):
            kept |= {name, *required}
    for path in folder.rglob("*.ko*"):
        if str(path.relative_to(folder)) not in kept:
            path.unlink()
    call(["depmod", "-b", root, folder.name])
