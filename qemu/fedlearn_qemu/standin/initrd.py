# SPDX-License-Identifier: Apache-2.0
"""The first file system: it loads Debian's drivers of the disk and hands over to the root.

The kernels of the layer have these drivers built in and need no such thing.
"""

from __future__ import annotations

import gzip
import lzma
import stat
from pathlib import Path

# In the order in which they are loaded.
DRIVERS = ("virtio_blk", "overlay")
_INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs devtmpfs /dev
for driver in {drivers}; do /bin/busybox insmod /$driver.ko; done
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in root=*) root=${{word#root=}} ;; esac
done
tries=0
while [ ! -b "$root" ] && [ $tries -lt 200 ]; do
    /bin/busybox usleep 50000
    tries=$((tries + 1))
done
/bin/busybox mount -t ext4 -o ro "$root" /new || exec /bin/busybox poweroff -f
/bin/busybox mount --move /dev /new/dev
/bin/busybox umount /proc
exec /bin/busybox switch_root /new /sbin/init
"""


def write(root: Path, target: Path) -> None:
    """Make the archive from the drivers and the busybox of `root`."""
    entries: list[tuple[str, int, bytes]] = [
        (name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "new", "proc")
    ]
    busybox = (root / "usr/bin/busybox").read_bytes()
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, busybox))
    for driver in DRIVERS:
        (packed,) = root.glob(f"usr/lib/modules/*/kernel/**/{driver}.ko.xz")
        module = lzma.decompress(packed.read_bytes())
        entries.append((f"{driver}.ko", stat.S_IFREG | 0o644, module))
    init = _INIT.format(drivers=" ".join(DRIVERS)).encode()
    entries.append(("init", stat.S_IFREG | 0o755, init))
    target.write_bytes(gzip.compress(archive(entries), compresslevel=1))


def archive(entries: list[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive (SVR4 "newc", which the kernel reads) of names, modes and contents."""
    parts = []
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        text = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, four device numbers, name's length, checksum
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(text), 0)
        header = b"070701" + b"".join(b"%08X" % value for value in fields)
        parts += [_padded(header + text), _padded(content)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
