# SPDX-License-Identifier: Apache-2.0
"""`fedlearn label`: a time gets a class, before or after it was recorded."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fedlearn.cli import main
from fedlearn.collect.intervals import (
    FILE,
    MAX_INTERVALS,
    Interval,
    label_windows,
    read_intervals,
    write_intervals,
)
from fedlearn.errors import StorageError
from tests.client.collect.harness import Collecting, window


def label(device: Collecting, *arguments: str) -> int:
    return main(["label", "--config", str(device.path / "device.toml"), *arguments])


def configured(device: Collecting) -> Collecting:
    device.configure('kind = "stdin"', 'classes = ["rest", "walk"]')
    return device


@pytest.mark.parametrize(
    ("arguments", "start_s", "end_s", "number"),
    [
        (("walk", "--last", "30s"), -30, 0, 1),
        (("1", "--next", "5m"), 0, 300, 1),
        (("none", "--last", "2"), -2, 0, None),
    ],
)
def test_a_label_is_kept(
    device: Collecting, arguments: tuple[str, ...], start_s: int, end_s: int, number: int | None
) -> None:
    before_ms = 1000 * time.time()
    assert label(configured(device), *arguments) == 0
    (interval,) = read_intervals(device.ring)
    assert interval.start_ms - 1000 * start_s == pytest.approx(before_ms, abs=5000)
    assert interval.end_ms - 1000 * end_s == pytest.approx(before_ms, abs=5000)
    assert interval.label == number


def test_the_list(device: Collecting, capsys: pytest.CaptureFixture[str]) -> None:
    day = "2026-11-28T0"
    assert label(configured(device), "walk", "--from", f"{day}9:00", "--to", f"{day}9:05") == 0
    assert label(device, "--list") == 0
    assert capsys.readouterr().out == (
        "2026-11-28 09:00:00 to 2026-11-28 09:05:00 (300 seconds): walk\n" * 2
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("run", "--last", "1s"), "known: rest, walk, none"),
        (("2", "--last", "1s"), "there is no class 2"),
        (("walk",), "when?"),
        ((), "no label"),
        (("walk", "--from", "2026-11-28T10:00", "--to", "2026-11-28T09:00"), "before it begins"),
    ],
)
def test_what_is_no_label(
    device: Collecting,
    arguments: tuple[str, ...],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert label(configured(device), *arguments) == 78
    assert complaint in capsys.readouterr().err
    assert read_intervals(device.ring) == []


def test_a_device_without_a_source_has_nothing_to_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "device.toml"
    file.write_text('[aggregator]\ntask = "x"\ninsecure = true\n[data]\npath = "x.npz"\n')
    assert main(["label", "1", "--last", "1s", "--config", str(file)]) == 78
    assert "collects nothing" in capsys.readouterr().err


def test_the_last_interval_that_holds_a_window_decides() -> None:
    windows = [window(0), window(1, 5), window(2, 5), window(9, 5)]
    intervals = [Interval(0, 3000, 1), Interval(1000, 2000, 2), Interval(2500, 9500, 3)]
    assert [each.label for each in label_windows(windows, intervals)] == [1, 2, 1, 5]
    assert label_windows(windows, []) == windows


def test_they_are_bounded(tmp_path: Path) -> None:
    many = [Interval(number, number + 1, 0) for number in range(MAX_INTERVALS + 10)]
    write_intervals(tmp_path, many)
    assert read_intervals(tmp_path) == many[10:]


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"start_ms": 1}]', '[{"start_ms":"x"}]'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(StorageError, match=FILE):
        read_intervals(tmp_path)
    (tmp_path / FILE).write_text(json.dumps([]))
    assert read_intervals(tmp_path) == []  # control
