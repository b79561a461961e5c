# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedlearn.collect.plugin import OwnSource, find_class
from fedlearn.collect.sample import Counts
from fedlearn.config import Config, load_config
from fedlearn.errors import ConfigError

ROOT = Path(__file__).parents[3]
BASE = '[device]\nstate_dir = "s"\n[aggregator]\ntask = "t"\ninsecure = true\n'
SOURCE = '[source]\nkind = "serial"\nport = "/dev/ttyACM0"\n'
SAMPLES = '[samples]\nchannels = ["ax", "ay"]\nwindow = 8\nstep = 0.1\n'


def load(path: Path, text: str) -> Config:
    file = path / "device.toml"
    file.write_text(BASE + text)
    return load_config(file)


def test_the_ring_is_what_a_device_with_a_source_learns_from(tmp_path: Path) -> None:
    config = load(tmp_path, SOURCE + SAMPLES)
    assert config.data.path == config.ring.path == tmp_path / "s/ring"
    config = load(tmp_path, SOURCE + SAMPLES + '[data]\npath = "x.npz"\n[ring]\npath = "r"\n')
    assert (config.data.path, config.ring.path) == (tmp_path / "x.npz", tmp_path / "r")


def test_lists_of_numbers(tmp_path: Path) -> None:
    samples = SAMPLES + "offset = [1, 2.5]\nscale = [0.5, 2]\n"
    config = load(tmp_path, SOURCE + samples)
    assert (config.samples.offset, config.samples.scale) == ((1.0, 2.5), (0.5, 2.0))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "data.path is missing"),
        ('[source]\nkind = "usb"\n' + SAMPLES, "source.kind"),
        ('[source]\nkind = "serial"\n' + SAMPLES, "source.port is missing"),
        ('[source]\nkind = "file"\n' + SAMPLES, "source.path is missing"),
        ('[source]\nkind = "own"\n' + SAMPLES, "source.use is missing"),
        (SOURCE + "options = 3\n" + SAMPLES, "must be a table"),
        (SOURCE, "samples.channels must name"),
        (SOURCE + SAMPLES.replace("step = 0.1", ""), "samples.step is missing"),
        (SOURCE + SAMPLES.replace('"ay"', '"ax"'), "'ax' is no name, or not the only one"),
        (SOURCE + SAMPLES.replace("= 8", "= 60000"), "larger than"),
        (SOURCE + SAMPLES + "offset = [1]\n", "must have 2 values"),
        (SOURCE + SAMPLES + "scale = [1, 0]\n", "above 0"),
        (SOURCE + SAMPLES + "scale = [1, nan]\n", "finite"),
        (SOURCE + SAMPLES + 'scale = ["1", "2"]\n', "a list of numbers"),
        (SOURCE + SAMPLES + 'classes = ["a", "a"]\n', "different names"),
        (SOURCE + SAMPLES + 'rules = ["1 if rms(az) > 2"]\n', "no channel az"),
        (SOURCE + "labelled = true\n" + SAMPLES + 'rules = ["1 if always"]\n', "samples.rules"),
        (SOURCE + SAMPLES.replace("= 8", "= 30000") + "[ring]\nsize_kib = 64\n", "ring.size_kib"),
        (SOURCE + SAMPLES + "[score]\nquantile = 1.5\n", "score.quantile"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text)
    assert complaint in str(raised.value)


def snippets(language: str) -> list[str]:
    text = "".join((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/sensors.md"))
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_what_the_documents_show_is_taken(tmp_path: Path) -> None:
    shown = [each for each in snippets("toml") if "[source]" in each]
    assert len(shown) == 2
    for each in shown:
        assert load(tmp_path, each).source.kind == "serial"
        with pytest.raises(ConfigError):
            load(tmp_path, each.replace("window =", "windows ="))  # control


def test_the_class_that_the_readme_shows_is_a_source(tmp_path: Path) -> None:
    (text,) = snippets("python")
    assert len([line for line in text.splitlines() if line.strip()]) <= 15
    (tmp_path / "sensor.py").write_text(text)
    made = find_class("sensor.py:Sensor", tmp_path)
    counts = Counts()
    source = OwnSource(made, {"pin": 4}, 3, counts)
    (sample,) = source.read(0.1)
    assert sample is not None
    assert sample.values[2] == 24.0
    source.close()
    assert (counts.samples, counts.garbage) == (1, 0)
