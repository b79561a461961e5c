# SPDX-License-Identifier: Apache-2.0
"""Nothing of a sample leaves the device.

A proxy between a real agent and a real aggregator keeps every byte that the agent sends. The test
reads them as the messages that they are, so that no byte is left over, and looks for the samples in
the bytes and in everything that they decode to.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from fedlearn.collect.grid import Grid
from fedlearn.collect.ring import RingWriter
from fedlearn.collect.settings import RingConfig
from fedlearn.collect.windows import Window
from fedlearn.model import Model
from fedlearn.wire import codec
from fedlearn.wire.delta import decode_delta
from fedlearn.wire.messages import CheckIn, Update
from fedlearn_demo.digits import MODEL_PATH, load_train
from tests.aggregator import process
from tests.client.agent.announced import unique_task
from tests.client.collect.harness import Collecting, Port

MODEL = Model.parse(MODEL_PATH.read_bytes())
# So many bytes of a window in a row are no chance: its own int8, of which zeros are left out.
RUN = 8
PATIENCE_S = 60


class Proxy:
    """Passes connections on and keeps what the clients send."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.sent: list[bytearray] = []
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            there = socket.create_connection(self._target)
            kept = bytearray()
            self.sent.append(kept)
            for source, sink, copy in ((client, there, kept), (there, client, None)):
                args = (source, sink, copy)
                threading.Thread(target=self._pump, args=args, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, copy: bytearray | None) -> None:
        try:
            while data := source.recv(65536):
                if copy is not None:
                    copy.extend(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self._server.close()


def runs(windows: list[bytes]) -> set[bytes]:
    """Every run of RUN bytes of the windows that is not all but one value."""
    found = {each[at : at + RUN] for each in windows for at in range(len(each) - RUN + 1)}
    return {each for each in found if len(set(each)) > RUN // 2}


def holds_samples(data: bytes, samples: set[bytes]) -> bool:
    return any(data[at : at + RUN] in samples for at in range(len(data) - RUN + 1))


def requests(stream: bytes) -> Iterator[tuple[str, bytes, bytes]]:
    """The requests of a connection: request line, the headers, the body. No byte is left over."""
    while stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        size = int(length[1]) if length else 0
        yield head.split(b"\r\n")[0].decode(), head, rest[:size]
        assert len(rest) >= size
        stream = rest[size:]


def bodies(data: bytes) -> Iterator[bytes]:
    """What might hide in a body: itself, and whatever in it is deflated."""
    yield data
    for at in range(len(data)):
        for bits in (15, -15):
            try:
                inner = zlib.decompressobj(bits).decompress(data[at:], 1 << 20)
            except zlib.error:
                continue
            if len(inner) > RUN:
                yield inner


def fill(path: Path, count: int) -> list[bytes]:
    entry = MODEL.tensors[MODEL.entry]
    grid = Grid(
        tuple(f"c{number}" for number in range(28)),
        28,
        (0.0,) * 28,
        (255.0,) * 28,
        entry.scale,
        entry.zero_point,
    )
    x, y = load_train()
    writer = RingWriter(path, grid, RingConfig(sync_s=3600))
    made = []
    for number in range(count):
        rows = x[number, :, :, 0].tolist()
        made.append(b"".join(grid.quantise(row)[0] for row in rows))
        writer.add(Window(made[-1], int(y[number]), number, number))
    writer.close()
    return made


@pytest.mark.slow
def test_no_sample_is_on_the_wire(tmp_path: Path) -> None:
    task = unique_task()
    store = tmp_path / "aggregator"
    done = process.run(
        "init",
        *("--data-dir", str(store), "--task", task, "--model", str(MODEL_PATH), "--tail", "all"),
        *("--cohort", "1", "--minimum", "1", "--over-selection", "1", "--rounds", "3"),
        *("--epochs", "2"),
    )
    assert done.returncode == 0, done.stderr
    device = tmp_path / "device"
    device.mkdir()
    windows = fill(device / "state/ring", 60)
    samples = runs(windows)
    assert len(samples) > 5000
    with process.serve(store, "--interface", "127.0.0.1") as aggregator:
        address = urlsplit(aggregator.url)
        assert address.port
        proxy = Proxy(("127.0.0.1", address.port))
        (device / "device.toml").write_text(
            f'[device]\nname = "board"\nstate_dir = "state"\nruntime_dir = "run"\n'
            f'[aggregator]\ntask = "{task}"\ninsecure = true\nurl = "http://127.0.0.1:{proxy.port}"\n'
            f'[source]\nkind = "serial"\nport = "port"\n'
            f"[samples]\nchannels = {json.dumps([f'c{n}' for n in range(28)])}\nwindow = 28\n"
            f"step = 1.0\n"
        )
        command = [sys.executable, "-m", "fedlearn", "agent", "--config", "device.toml"]
        with (tmp_path / "log").open("wb") as log:
            agent = subprocess.Popen(command, cwd=device, stderr=log)
        try:
            give_up = time.monotonic() + PATIENCE_S
            while sum(state == "closed" for state in states(aggregator.url)) < 3:
                assert time.monotonic() < give_up, (tmp_path / "log").read_text()
                time.sleep(0.1)
        finally:
            agent.terminate()
            agent.wait(20)
            proxy.close()
    updates = 0
    for stream in proxy.sent:
        for line, head, body in requests(bytes(stream)):
            assert not holds_samples(head, samples)
            assert not any(holds_samples(each, samples) for each in bodies(body))
            if line.startswith("PUT"):
                updates += 1
                look_into(codec.decode(Update, body, max_bytes=1 << 20), samples)
            elif line.startswith("POST"):
                codec.decode(CheckIn, body, max_bytes=1000)  # nothing but what it declares
            else:
                assert line.startswith("GET")
                assert body == b""
    assert updates == 3


def look_into(update: Update, samples: set[bytes]) -> None:
    """Neither a tensor's difference, nor the tensor that it makes of the model, has a sample."""
    for each in update.tensors:
        tensor = MODEL.tensors[each.index]
        count = int(np.prod(tensor.shape))
        delta = decode_delta(each.encoding, each.data, count, dtype=tensor.dtype)
        assert not holds_samples(delta.astype(np.int8).tobytes(), samples)
        assert not holds_samples((MODEL.array(each.index).ravel() + delta).tobytes(), samples)


def states(url: str) -> list[str]:
    with urllib.request.urlopen(f"{url}/v1/status", timeout=10) as reply:
        return [each["state"] for each in json.loads(reply.read())["rounds"]]


@pytest.mark.parametrize("hidden", [lambda data: data, zlib.compress, lambda data: data[300:330]])
def test_a_sample_would_be_found(tmp_path: Path, hidden: object) -> None:
    """Control: whole, deflated, or a piece of it."""
    assert callable(hidden)
    windows = fill(tmp_path, 3)
    body = b"update" + hidden(windows[1]) + b"end"
    assert any(holds_samples(each, runs(windows)) for each in bodies(body))


def test_the_collecting_process_has_no_socket(device: Collecting, port: Port) -> None:
    device.configure('kind = "serial"\nport = "port"')
    device.start()
    device.until(lambda status: status.state == "reading")
    assert device.process is not None
    assert sockets(device.process.pid) == []


def test_a_socket_would_be_found() -> None:
    """Control."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM):
        assert sockets(os.getpid()) != []


def sockets(pid: int) -> list[str]:
    links = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the directory that is read here is one, too
            links.append(str(each.readlink()))
    return [link for link in links if link.startswith("socket:")]
