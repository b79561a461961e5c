# SPDX-License-Identifier: Apache-2.0
"""The work of maintainer scripts and OE-core's classes, which do not run here."""

from __future__ import annotations

import os
from pathlib import Path

from fedlearn_qemu.standin import layer
from fedlearn_qemu.standin.users import Accounts, add_sysusers

# Directories of a read-only root that programs write to: OE-core's volatile-binds.
_VOLATILE = ("lib", "cache", "log", "spool")
_VOLATILE_UNIT = """\
[Unit]
Description=Changes to /var/{name} in memory
DefaultDependencies=no
RequiresMountsFor=/var/volatile
Before=local-fs.target systemd-random-seed.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/mkdir -p /var/volatile/{name} /var/volatile/.{name}-work
ExecStart=/usr/bin/mount -t overlay \\
    -o lowerdir=/var/{name},upperdir=/var/volatile/{name},workdir=/var/volatile/.{name}-work \\
    overlay /var/{name}
"""
# What OE-core's images do not have either.
_MASKED = (
    "ldconfig.service",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-logind.service",
    "systemd-sysusers.service",
    "systemd-update-done.service",
    "getty-static.service",
    "getty.target",
)
_ENABLED = ("systemd-networkd.service", "systemd-network-generator.service")


def accounts(root: Path) -> Accounts:
    """Debian's users."""
    found = Accounts()
    add_sysusers(found, root / "usr/lib/sysusers.d")
    return found


def complete(root: Path) -> None:
    """Make the folder of packages a root that boots."""
    etc, units = root / "etc", root / "etc/systemd/system"
    for name in ("boot", "data", "dev", "proc", "run", "srv", "sys", "tmp", "var/volatile"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (etc / "fstab").write_text(layer.fstab(), "utf-8")
    (etc / "hostname").write_text(f"{layer.MACHINE}\n", "utf-8")
    # Empty: systemd fills it in at the first boot.
    (etc / "machine-id").write_text("", "utf-8")
    for name in ("resolv.conf", "nsswitch.conf", "hosts"):
        (etc / name).unlink(missing_ok=True)
    (etc / "resolv.conf").write_text("", "utf-8")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n", "utf-8")
    (etc / "hosts").write_text("127.0.0.1 localhost\n", "utf-8")
    units.mkdir(parents=True, exist_ok=True)
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    for name in _MASKED:
        (units / name).symlink_to("/dev/null")
    for name in _ENABLED:
        layer.enable(root, name)
    wants = units / "local-fs.target.wants"
    wants.mkdir(exist_ok=True)
    for name in _VOLATILE:
        unit = f"var-volatile-{name}.service"
        (units / unit).write_text(_VOLATILE_UNIT.format(name=name), "utf-8")
        (wants / unit).symlink_to(f"../{unit}")
    for folder in ("etc", "var"):  # nothing to update at the first boot
        os.utime(root / folder)
        (root / folder / ".updated").write_text("", "utf-8")
