# SPDX-License-Identifier: Apache-2.0
"""The sender in the documentation, compiled and run: an encoder that is not ours."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedlearn.collect.sample import Counts, Sample
from fedlearn.collect.sequence import SequenceDecoder

DOCUMENT = Path(__file__).parents[3] / "docs/sensors.md"
AROUND = """
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <cstdlib>
static uint32_t now = 0;
uint32_t micros() { return now += 1000; }
struct Port {
  void begin(long) {}
  void write(uint8_t byte) { putchar(byte); }
} Serial;
void readSensor(float *values) {
  static int number = 0;
  for (int i = 0; i < 6; i++) values[i] = number * (i + 1) / 8.0f - 3;
  number++;
}
SKETCH
int main() {
  setup();
  for (int i = 0; i < 300; i++) loop();
}
"""

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no sketch is compiled: apt install g++"
)


def sent(path: Path, sketch: str) -> bytes:
    (path / "sketch.cpp").write_text(AROUND.replace("SKETCH", sketch))
    command = ["g++", "-Wall", "-Werror", "-o", "sketch", "sketch.cpp"]
    subprocess.run(command, cwd=path, check=True, timeout=300)
    return subprocess.run([path / "sketch"], capture_output=True, check=True, timeout=60).stdout


@pytest.fixture
def sketch() -> str:
    found = re.search(r"```cpp\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S)
    assert found is not None
    return found[1]


def test_what_the_sketch_sends_is_read(tmp_path: Path, sketch: str) -> None:
    counts = Counts()
    items = SequenceDecoder(6, counts).feed(sent(tmp_path, sketch))
    assert (counts.garbage, counts.lost, counts.samples) == (0, 0, 300)
    rows = [tuple(number * (i + 1) / 8 - 3 for i in range(6)) for number in range(300)]
    assert items == [Sample(row) for row in rows]


def test_a_wrong_sketch_would_be_found(tmp_path: Path, sketch: str) -> None:
    """Control."""
    counts = Counts()
    wrong = sketch.replace("0xEDB88320", "0xEDB88321")
    assert wrong != sketch
    assert not any(SequenceDecoder(6, counts).feed(sent(tmp_path, wrong)))
