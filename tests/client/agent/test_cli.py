# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.agent.status import Status, is_alive, write_status
from fedlearn.cli import main
from fedlearn.config import keys
from fedlearn.text import clean
from fedlearn.version import VERSION

TRAIN = ["model", "train", "none.tflite", "none.npz", "--out", "out.tflite"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "device.toml"
    path.write_text(
        '[device]\nname = "board"\nruntime_dir = "run"\nstate_dir = "state"\n'
        '[aggregator]\ntask = "digits"\ninsecure = true\n[data]\npath = "data.npz"\n'
    )
    return path


def test_check_config_says_what_the_agent_would_do(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["agent", "--config", str(config), "--check-config"]) == 0
    output = capsys.readouterr().out
    assert "is correct" in output
    assert "board, joins task digits" in output
    assert "there is no training data at" in output
    assert not (config.parent / "state").exists()


def test_an_error_is_one_line_with_a_hint_and_no_traceback(config: Path) -> None:
    config.write_text(config.read_text().replace("task", "tusk"))
    done = subprocess.run(
        [sys.executable, "-m", "fedlearn", "agent", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert done.stderr == (
        f"fedlearn: error: {config}: unknown key in [aggregator]: tusk (did you mean task?)\n"
    )


def test_a_ca_that_cannot_be_read_is_found_by_the_check(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = config.read_text().replace("insecure = true", 'ca = "none.pem"')
    config.write_text(text)
    assert main(["agent", "--config", str(config), "--check-config"]) == 78
    assert "none.pem" in capsys.readouterr().err


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["agent", "--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    for key in keys():
        assert f"  {key.name} " in output
        assert f"[{key.section}]" in output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["model"],
        ["agent", "--nonsense"],
        [*TRAIN, "--seed", "-1"],
        [*TRAIN, "--seed", str(2**64)],
        [*TRAIN, "--tail", "head"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_the_greatest_seed_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """Control: what is missing then is the model."""
    assert main([*TRAIN, "--seed", str(2**64 - 1)]) == 66


def test_status_of_no_agent(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--config", str(config)]) == 1
    assert "is the agent started" in capsys.readouterr().err


def test_status(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = config.parent / "run"
    run.mkdir()
    status = Status(state="waiting", reason="no\x1b[2Jseat", pid=os.getpid(), device="board")
    write_status(run / "status.json", status)
    assert main(["status", "--config", str(config)]) == 0
    output = capsys.readouterr().out
    assert "waiting: no [2Jseat" in output
    assert "\x1b" not in output
    assert main(["status", "--json", "--config", str(config)]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["alive"] is True
    assert values["device"] == "board"


def test_status_of_an_agent_that_died(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    run = config.parent / "run"
    run.mkdir()
    write_status(run / "status.json", Status(state="waiting", pid=child.pid))
    assert main(["status", "--config", str(config)]) == 1
    assert "not running" in capsys.readouterr().out
    for pid in (0, -1, 2**40):
        assert not is_alive(Status(state="waiting", pid=pid))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "5", '{"state": "x", "future": 1}', '{"state": "x", "policy": [5]}']
)
def test_any_status_file_is_survived(config: Path, content: str) -> None:
    run = config.parent / "run"
    run.mkdir()
    (run / "status.json").write_text(content)
    assert main(["status", "--config", str(config)]) == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fedlearn"] == VERSION


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", str(tmp_path / "none.tflite")]) == 66
    assert capsys.readouterr().err.startswith("fedlearn: error: there is no model file")


def test_the_command_alone_loads_nothing_heavy() -> None:
    program = (
        "import sys, fedlearn.cli, fedlearn.agent.agent\n"
        "print({'numpy', 'zeroconf', 'asyncio'} & set(sys.modules))\n"
        "import zeroconf\n"
        "print('asyncio' in sys.modules)"  # the control
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\nTrue\n"


def test_peers_text_is_cleaned_and_capped() -> None:
    assert clean("plain text") == "plain text"
    assert clean("a\x1b[31m\r\nb\u202ec\x00") == "a [31m b c"
    assert clean("x" * 500) == "x" * 200 + "..."
    assert clean(5) == "5"
