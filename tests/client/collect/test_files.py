# SPDX-License-Identifier: Apache-2.0
"""Files, folders, standard input and classes of one's own."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from fedlearn.collect.ring import read_ring
from tests.client.collect.harness import Collecting

TEXT = "".join(f"{number},0\n" for number in range(12))


def old(path: Path) -> None:
    """As if it had been put there a while ago."""
    os.utime(path, (time.time() - 60,) * 2)


def first_values(device: Collecting) -> list[float]:
    grid, windows = read_ring(device.ring)
    return [grid.real(each.data[0], 0) for each in windows]


def finished(device: Collecting) -> None:
    assert device.process is not None
    assert device.process.wait(20) == 0, device.log


def test_a_file_is_read_once(device: Collecting) -> None:
    (device.path / "a.csv").write_text("a,b\n" + TEXT[:-1])  # a heading, and no end of line
    device.configure('kind = "file"\npath = "a.csv"')
    for _ in range(2):
        device.start()
        finished(device)
    assert first_values(device) == [0, 4, 8]
    (device.path / "a.csv").write_text(TEXT + "1,1\n" * 4)  # another one by that name
    device.start()
    finished(device)
    assert first_values(device) == [0, 4, 8, 0, 4, 8, 1]


@pytest.mark.parametrize("shape", ["samples", "windows"])
def test_npz_is_what_its_arrays_say(device: Collecting, shape: str) -> None:
    x = np.arange(24, dtype=np.float32).reshape(12, 2) / 4
    y = np.array([0] * 4 + [1] * 4 + [2] * 4)
    if shape == "windows":
        x, y = x.reshape(3, 4, 2), np.array([0, 1, 2])
    np.savez(device.path / "a.npz", x=x, y=y)
    device.configure('kind = "file"\npath = "a.npz"\nlabelled = true')
    device.start()
    finished(device)
    _, windows = read_ring(device.ring)
    got = np.frombuffer(b"".join(each.data for each in windows), np.int8)
    assert np.array_equal(got, np.rint(x.astype(np.float64).ravel() / 0.5))
    assert [each.label for each in windows] == [0, 1, 2]


def test_a_folder_is_watched(device: Collecting) -> None:
    folder = device.path / "in"
    folder.mkdir()
    device.configure(f'kind = "file"\npath = "{folder}"')
    (folder / "b.csv").write_text(TEXT)
    (folder / "note.md").write_text(TEXT)
    (folder / "bad.npz").write_text("no archive")
    for each in folder.iterdir():
        old(each)
    device.start()
    device.until(lambda status: status.stored == 3)
    growing = folder / "c.csv"
    growing.write_text(TEXT)
    time.sleep(1.2)
    growing.write_text(TEXT.replace(",0", ",1"))  # it was not complete
    device.until(lambda status: status.stored == 6)
    assert [each.data[1] for each in read_ring(device.ring)[1]] == [0, 0, 0, 2, 2, 2]
    assert "bad.npz is no usable" in device.log
    device.stop()
    device.start()
    time.sleep(1)
    assert device.status.counts.samples == 0


def test_standard_input(device: Collecting) -> None:
    device.configure('kind = "stdin"')
    reader, writer = os.pipe()
    device.start(stdin=reader)
    os.close(reader)
    os.write(writer, TEXT[:20].encode())
    os.write(writer, TEXT[20:].encode())
    os.close(writer)
    finished(device)
    assert first_values(device) == [0, 4, 8]


OWN = """
from fedlearn.collect import Sample


class Sensor:
    def __init__(self, first):
        self.number = first

    def read(self, timeout_s):
        self.number += 1
        if self.number == 9:
            raise RuntimeError("the bus hangs")
        return [(self.number, 0.5), (1, 2, 3), Sample((self.number, 1), label=1), None]

    def close(self):
        open("closed", "a").write("x")
"""


def test_a_class_of_ones_own(device: Collecting) -> None:
    (device.path / "sensor.py").write_text(OWN)
    own = 'kind = "own"\nuse = "sensor.py:Sensor"\noptions = { first = 4 }'
    device.configure(own, "max_gap_s = 5")
    device.start()
    status = device.until(lambda status: status.counts.failures >= 2)
    assert status.counts.samples == 8 * status.counts.failures
    assert status.counts.garbage == 4 * status.counts.failures
    assert "RuntimeError: the bus hangs" in device.log
    assert device.stop() == 0
    assert set((device.path / "closed").read_text()) == {"x"}


@pytest.mark.parametrize("use", ["sensor.py:Nothing", "no.such:Class", "missing.py:A", "entry"])
def test_a_class_that_is_not_there_is_named(device: Collecting, use: str) -> None:
    (device.path / "sensor.py").write_text(OWN)
    device.configure(f'kind = "own"\nuse = "{use}"')
    device.start()
    status = device.until(lambda status: status.counts.failures > 0)
    assert "source.use" in status.last_error


def test_without_a_source_there_is_nothing_to_do(tmp_path: Path) -> None:
    import sys

    file = tmp_path / "device.toml"
    file.write_text(
        f'[device]\nstate_dir = "{tmp_path}"\n[aggregator]\ntask = "x"\ninsecure = true\n'
        '[data]\npath = "x.npz"\n'
    )
    command = [sys.executable, "-m", "fedlearn", "collect", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "names no source" in done.stdout
