# SPDX-License-Identifier: Apache-2.0
"""A disk with a volatile write-back cache, for power cuts that really lose something.

Killing QEMU alone loses nothing: what the guest wrote is in the page cache of the host. Here writes
stay in memory until the guest flushes (or asks for FUA), and at a power cut a random part of what
was not flushed reaches the disk, in blocks and in no order, as a real drive may do it. QEMU speaks
NBD to it (doc/proto.md of NetworkBlockDevice/nbd), one client at a time.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import struct
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO, Self

BLOCK_BYTES = 4096
_MAGIC, _OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
_REPLY_MAGIC = 0x3E889045565A9
_GO, _ABORT = 7, 2
_ACK, _INFO, _UNSUPPORTED = 1, 3, (1 << 31) + 1
_READ, _WRITE, _DISCONNECT, _FLUSH = range(4)
_FUA = 1
# has flags, flush, FUA
_EXPORT_FLAGS = 1 | 4 | 8
_EINVAL = 22


class Cache:
    """The blocks of a file that are not flushed; no I/O but the file's."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.blocks: dict[int, bytes] = {}

    def read(self, offset: int, size: int) -> bytes:
        """Read what was last written, flushed or not."""
        first, last = offset // BLOCK_BYTES, (offset + size - 1) // BLOCK_BYTES
        data = b"".join(self._block(number) for number in range(first, last + 1))
        begin = offset - first * BLOCK_BYTES
        return data[begin : begin + size]

    def write(self, offset: int, data: bytes, *, through: bool = False) -> None:
        """Write; `through` puts it on the disk at once, and nothing else."""
        while data:
            number, begin = divmod(offset, BLOCK_BYTES)
            part = data[: BLOCK_BYTES - begin]
            block = part
            if len(part) < BLOCK_BYTES:
                old = self._block(number)
                block = old[:begin] + part + old[begin + len(part) :]
            self.blocks[number] = block
            if through:
                self._store(number)
            offset, data = offset + len(part), data[len(part) :]

    def flush(self) -> None:
        """Put everything on the disk."""
        for number in sorted(self.blocks):
            self._store(number)

    def cut(self, luck: random.Random) -> tuple[int, int]:
        """Lose the power; return how many blocks reached the disk, and how many did not."""
        share = luck.choice((0.0, 0.5, 0.9))
        lucky = [number for number in self.blocks if luck.random() < share]
        lost = len(self.blocks) - len(lucky)
        for number in lucky:
            self._store(number)
        self.blocks.clear()
        return len(lucky), lost

    def _block(self, number: int) -> bytes:
        block = self.blocks.get(number)
        if block is None:
            self._file.seek(number * BLOCK_BYTES)
            block = self._file.read(BLOCK_BYTES).ljust(BLOCK_BYTES, b"\0")
        return block

    def _store(self, number: int) -> None:
        self._file.seek(number * BLOCK_BYTES)
        self._file.write(self.blocks.pop(number))


class VolatileDisk:
    """Serves a raw disk file; a context manager. `drive` is QEMU's option."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        self._size = path.stat().st_size
        self.cache = Cache(self._file)
        self._folder = Path(tempfile.mkdtemp(prefix="fedlearn-nbd-"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / "disk"))
        self._listener.listen()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        self._idle.wait(10)
        self.cache.flush()
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def drive(self) -> str:
        """QEMU's -drive."""
        path = self._folder / "disk"
        return f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={path}"

    def power_cut(self, luck: random.Random) -> tuple[int, int]:
        """Lose what is not flushed, or part of it; QEMU must have been killed before."""
        if not self._idle.wait(10):
            raise RuntimeError("the disk is still in use")
        return self.cache.cut(luck)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._idle.clear()
            with client, contextlib.suppress(OSError, EOFError):
                if self._shake_hands(client):
                    while self._answer(client):
                        pass
            self._idle.set()

    def _shake_hands(self, client: socket.socket) -> bool:
        client.sendall(_MAGIC + _OPTION_MAGIC + struct.pack(">H", 3))
        _receive(client, 4)
        while True:
            _, option, length = struct.unpack(">8sII", _receive(client, 16))
            _receive(client, length)
            head = struct.pack(">QI", _REPLY_MAGIC, option)
            if option == _GO:
                export = struct.pack(">HQH", 0, self._size, _EXPORT_FLAGS)
                client.sendall(head + struct.pack(">II", _INFO, len(export)) + export)
                client.sendall(head + struct.pack(">II", _ACK, 0))
                return True
            if option == _ABORT:
                return False
            client.sendall(head + struct.pack(">II", _UNSUPPORTED, 0))

    def _answer(self, client: socket.socket) -> bool:
        head = _receive(client, 28)
        _, flags, kind, handle, offset, length = struct.unpack(">IHHQQI", head)
        error, data = 0, b""
        if kind == _READ:
            data = self.cache.read(offset, length)
        elif kind == _WRITE:
            self.cache.write(offset, _receive(client, length), through=bool(flags & _FUA))
        elif kind == _FLUSH:
            self.cache.flush()
        elif kind == _DISCONNECT:
            return False
        else:
            error = _EINVAL
        client.sendall(struct.pack(">IIQ", 0x67446698, error, handle) + data)
        return True


def _receive(client: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = client.recv(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)
