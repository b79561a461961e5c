# SPDX-License-Identifier: Apache-2.0
"""What is shown, on a terminal and in a log; and the picture."""

import io
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from fedlearn_demo import display as display_module
from fedlearn_demo.display import LiveTable, PlainLines, make_display
from fedlearn_demo.picture import save_picture
from fedlearn_demo.rounds import Round

ROUNDS = [
    Round(
        number=number,
        devices=10,
        accuracy=0.5 + number / 50,
        loss=0.3,
        bytes_up=(7800, 8000, 9000),
        bytes_down=(57_000,) * 3 if number == 1 else (5000, 6000, 7000),
        wall_s=1.25,
        slowest_train_s=1.1,
        model="ab" * 32,
    )
    for number in range(1, 21)
]


def test_log_gets_one_line_a_round() -> None:
    text = io.StringIO()
    with make_display(Console(file=text, width=40), "a title", 20) as display:
        assert isinstance(display, PlainLines)
        display.show(ROUNDS[:1], "training")
        display.show(ROUNDS[:1], "aggregating")
        display.show(ROUNDS[:3], "training")
    lines = text.getvalue().splitlines()
    assert lines[0] == "a title"
    assert len(lines) == 4
    assert lines[1] == (
        "round  1/20: 10 devices, accuracy 52.0%, 8.0 kB up and 57.0 kB down a device, 1.25 s"
    )


def test_log_gets_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    with make_display(Console(file=text), "a title", 20) as display:
        display.show([], "waiting for devices")
        assert "waiting" not in text.getvalue()
        monkeypatch.setattr(display_module, "HEARTBEAT_S", 0.0)
        display.show([], "waiting for devices")
    assert text.getvalue().splitlines() == ["a title", "waiting for devices"]


def test_terminal_gets_a_table() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=50)
    with make_display(console, "a title", 20) as display:
        assert isinstance(display, LiveTable)
        display.show(ROUNDS[:2], "training: 3 of 10 updates are in")
        display.show(ROUNDS, "done")
        assert "done" in text.getvalue()
    last = text.getvalue().rsplit("a title", 1)[1]
    for shown in ("accuracy", "kB up", "kB down", "seconds", "90.0%", "6.0", "20/20"):
        assert shown in last


def test_table_fits_a_small_terminal() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, height=14)
    with make_display(console, "a title", 25) as display:
        display.show(ROUNDS, "training")
        frame = text.getvalue()
        assert "90.0%" in frame  # the newest round is there
        assert "training" in frame
        assert "52.0%" not in frame
        assert frame.count("\n") < 14
        assert all(cell_len(Text.from_ansi(line).plain) <= 80 for line in frame.splitlines())
    assert "52.0%" in text.getvalue().removeprefix(frame)  # what stays has all rounds


def test_frames_are_rare() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=50)
    with make_display(console, "a title", 20) as display:
        display.show(ROUNDS[:1], "one")
        size = len(text.getvalue())
        for _ in range(100):
            display.show(ROUNDS[:2], "two")
        assert len(text.getvalue()) == size


def test_picture(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.png"
    save_picture(path, "a title", 0.48, ROUNDS)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.stat().st_size > 20_000
    save_picture(path, "one round", 0.48, ROUNDS[:1])


def test_round_figures() -> None:
    assert ROUNDS[0].up_kb == 8.0
    assert round(ROUNDS[0].overhead_s, 9) == 0.15
