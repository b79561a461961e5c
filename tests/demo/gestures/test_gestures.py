# SPDX-License-Identifier: Apache-2.0
"""The demo, shortened: ten sensors, ten collecting processes, eight agents, real mDNS."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fedlearn_demo.gestures import watch
from fedlearn_demo.gestures.run import run
from fedlearn_demo.gestures.settings import CHOICES, Settings
from tests.demo.gestures.made_up import recordings


@pytest.mark.slow
def test_gestures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "find", lambda: tmp_path)
    monkeypatch.setattr(watch, "load", lambda _: recordings())
    settings = Settings(choices=CHOICES[:1], rounds=2, speed=200.0, few_epochs=5)
    console = Console(file=io.StringIO())
    report = run(settings, tmp_path / "out", console)
    values = json.loads((tmp_path / "out/report.json").read_bytes())
    assert (tmp_path / "out/gestures.png").stat().st_size > 10_000
    # 525 of 700 samples, and half of 14 exercises' windows
    assert values["windows_by_person"] == [9 * 14] * 10
    figures = {name: each.mean for name, each in report.figures.items()}
    assert all(0 <= value <= 1 for value in figures.values())
    assert figures["global_heldout"] > 0.3  # made-up people are easily told
    # By this process as by the aggregator.
    last = values["choices"][0]["global_by_round"][-1]
    assert figures["global_heldout"] == pytest.approx(last, abs=1e-4)
    assert [each["aimed_at"] for each in values["aims"]] == [-1.0, 10.0, 15.0]
    assert report.replay_s >= 14 * 525 / 50 / 200
