# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedlearn.config import Config, PolicyConfig, host_name, keys, load_config
from fedlearn.errors import ConfigError, DatasetError
from fedlearn.wire.messages import NAME

SMALLEST = """
[aggregator]
task = "digits"
insecure = true
[data]
path = "train.npz"
"""


def load(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "device.toml"
    file.write_text(text)
    return load_config(file)


def test_defaults_fill_the_smallest_configuration(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST)
    assert config.aggregator.task == "digits"
    assert config.device.name == host_name()
    assert config.device.state_dir == Path("/var/lib/fedlearn")
    assert config.training.threads == 1
    assert config.training.linger_s == 10.0


def test_a_policy(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST).policy == PolicyConfig()
    policy = """[policy]
        on_mains_only = true
        min_battery_percent = 30
        max_temperature_c = 70
        max_load_per_core = 0.5
        max_memory_pressure_percent = 10.5
        min_available_memory_kib = 50000
        window = "22:00-06:00"
    """
    assert load(tmp_path, SMALLEST + policy).policy == PolicyConfig(
        True, 30.0, 70.0, 0.5, 10.5, 50_000, "22:00-06:00"
    )


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST + '[device]\nstate_dir = "/abs"\nruntime_dir = "run"\n')
    assert config.data.path == tmp_path / "train.npz"
    assert config.device.runtime_dir == tmp_path / "run"
    assert config.device.state_dir == Path("/abs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("task =", "tsak ="), r"unknown key in \[aggregator\]: tsak \(did you mean task\?\)"),
        (("[data]", "[date]"), r"unknown section: date \(did you mean data\?\)"),
        (("[data]", "[xyz]"), r"unknown section: xyz \(known: aggregator, data, "),
        (('task = "digits"', ""), r"aggregator.task is missing \(name of the task"),
        (('"digits"', '"di gits"'), r"aggregator.task must be of the form"),
        (('"digits"', "5"), r"aggregator.task must be a string"),
        (("insecure = true", "insecure = 1"), r"aggregator.insecure must be true or false"),
        (("insecure = true", "insecure = false"), r"aggregator.ca is missing"),
        (('"train.npz"', '""'), r"data.path is empty"),
        (("[data]", "[training]\nthreads = 0\n[data]"), r"training.threads must be within 1..64"),
        (("[data]", "[training]\nthreads = true\n[data]"), r"training.threads must be an integer"),
        (("[data]", "[training]\nlinger_s = nan\n[data]"), r"training.linger_s must be within"),
        (("[aggregator]", "device = 5\n[aggregator]"), r"device must be a section"),
        (("insecure", "interfaces = [5]\ninsecure"), r"interfaces must be a list of strings"),
        (("insecure", 'interfaces = "lo"\ninsecure'), r"interfaces must be a list of strings"),
        (("insecure", 'url = "host:80"\ninsecure'), r"no URL of an aggregator"),
        (("insecure", 'url = "https://h:99999"\ninsecure'), r"aggregator.url .*[Pp]ort"),
        (("insecure", 'url = "https://h/v1"\ninsecure'), r"more than a host and a port"),
        (("insecure = true", 'url = "http://127.0.0.1:80"'), r"aggregator.url is plain http"),
        (("insecure", 'url = "http://192.0.2.7:80"\ninsecure'), r"plain http to another machine"),
        (("[data]", "[data"), r"is no TOML"),
        *(
            (("[data]", f"[policy]\n{line}\n[data]"), message)
            for line, message in (
                ("max_temperature = 70", r"unknown key .*did you mean max_temperature_c\?"),
                ("max_temperature_c = 70000", r"policy.max_temperature_c must be within 1..150"),
                ("max_temperature_c = nan", r"policy.max_temperature_c must be within"),
                ('max_temperature_c = "70"', r"policy.max_temperature_c must be a number"),
                ("min_battery_percent = 0.3", r"policy.min_battery_percent must be within 1..100"),
                ("min_battery_percent = true", r"policy.min_battery_percent must be a number"),
                ("on_mains_only = 1", r"policy.on_mains_only must be true or false"),
                ("max_load_per_core = 0", r"policy.max_load_per_core must be within"),
                ("max_memory_pressure_percent = 101", r"must be within 0.1..100"),
                ("min_available_memory_kib = 1.5", r"min_available_memory_kib must be an integer"),
                *(
                    (
                        f'window = "{window}"',
                        r"two different times of day, such as 22:00-06:00 \(it",
                    )
                    for window in ("", "22-6", "22:00-24:00", "06:00-06:00", "22:00-6:00", "always")
                ),
            )
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    load(tmp_path, SMALLEST)  # the control: without the change it is correct
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALLEST.replace(*change, 1))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "device.toml" in str(caught.value)


def test_a_missing_file_and_a_huge_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="larger than"):
        load(tmp_path, "#" * 100_000)


def test_every_key_is_described(tmp_path: Path) -> None:
    described = {(key.section, key.name) for key in keys()}
    config = load(tmp_path, SMALLEST)
    existing = {
        (section, name)
        for section in Config.__slots__
        for name in getattr(config, section).__slots__
    }
    assert described == existing
    assert all(key.doc for key in keys())


def test_data_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(tmp_path, SMALLEST).data
    with pytest.raises(DatasetError, match="there is no training data"):
        data.check()
    assert data.path is not None
    data.path.touch()
    data.check()  # the control

    def forbidden(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", forbidden)
    with pytest.raises(DatasetError, match="Permission denied") as caught:
        data.check()
    assert str(data.path) in caught.value.hint


def test_the_host_name_makes_a_device_name() -> None:
    assert re.fullmatch(NAME, host_name())
