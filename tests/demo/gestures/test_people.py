# SPDX-License-Identifier: Apache-2.0
"""Splits are by time, and no window has a sample of two sides."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import ConfigError, DatasetError
from fedlearn_demo.gestures import people, watch
from fedlearn_demo.gestures.people import Windows
from fedlearn_demo.gestures.watch import CHANNELS, CLASSES, WINDOW, Recording
from tests.demo.gestures.made_up import recordings


def numbered(length: int, label: int = 0, arm: str = "left") -> Recording:
    """Each sample tells its number, in steps of the grid, modulo 256."""
    number = np.arange(length) % 256 - 128
    samples = np.repeat(number[:, np.newaxis] * watch.STEP, len(CHANNELS), axis=1) * watch.SCALE
    return Recording(1, label, arm, samples)


def first(windows: Windows) -> list[int]:
    return [int(each) + 128 for each in windows.x[:, 0, 0]]


def last(windows: Windows) -> list[int]:
    return [int(each) + 128 for each in windows.x[:, -1, 0]]


def test_what_is_judged_comes_after_what_is_learnt() -> None:
    recording = numbered(256)
    learnt, judged = people.trained([recording]), people.judged([recording])
    assert first(learnt) == [0, 50]
    assert last(learnt)[-1] < 192
    long = people.judged([numbered(4 * WINDOW + 200)])
    assert len(long) == 2
    assert len(judged) == 0  # too short for a window
    assert len(people.whole([recording])) == 4


def test_windows_stay_within_their_recording() -> None:
    both = people.whole([numbered(WINDOW), numbered(WINDOW, 3)])
    assert both.y.tolist() == [0, 3]


def test_few_windows_of_both_arms_and_the_time_after() -> None:
    each = [numbered(600, label, arm) for label in range(7) for arm in ("left", "right")]
    learnt, rest = people.few(each, 5)
    assert np.bincount(learnt.y).tolist() == [5] * 7
    assert first(learnt)[:3] == [0, 50, 100]
    assert first(rest)[0] == last(learnt)[2] + 1 == 200
    assert len(rest) == 7 * (7 + 8)


def test_the_stream_is_what_the_windows_are_cut_from() -> None:
    some = [each for each in recordings(300) if each.person == 2][:2]
    lines = people.stream(some).splitlines()
    assert lines.count(people.PAUSE) == 2
    rows = [line.split(",") for line in lines if line != people.PAUSE]
    assert {row[-1] for row in rows} == {CLASSES[0]}
    sent = np.array([[float(value) for value in row[:-1]] for row in rows])
    assert np.array_equal(sent, np.concatenate([each.trained for each in some]))


def test_only_the_known_file_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "watch_dataset.npy"
    values = {
        "X": [np.ones((5, 6)), np.zeros((4, 6))],
        "y": np.array([1, 0]),
        "subject": np.array([2, 1]),
        "side": np.array([1.0, 0.0]),
    }
    np.save(path, np.array(values, dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match="is not the file"):
        watch.load(path)
    monkeypatch.setattr(watch, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    found = watch.load(path)
    assert [(each.person, each.label, each.arm) for each in found] == [
        (1, 0, "left"),
        (2, 1, "right"),
    ]


def test_what_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="--no-deps seglearn"):
        watch.find()
