# SPDX-License-Identifier: Apache-2.0
"""The demo itself, shortened: real processes, real mDNS on loopback, the real command."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fedlearn.dataset import Dataset
from fedlearn.errors import ExitCode, FedlearnError
from fedlearn.evaluation import evaluate
from fedlearn.model import Model
from fedlearn_demo.digits import load_test
from fedlearn_demo.display import PlainLines
from fedlearn_demo.fleet import Fleet
from fedlearn_demo.meter import child_pids, memory
from fedlearn_demo.run import run
from fedlearn_demo.settings import Settings

COMMAND = [sys.executable, "-m", "fedlearn_demo", "digits", "--devices", "4"]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with subprocess.Popen(
        [*COMMAND, "--rounds", "3", "--json", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        family = set()
        while demo.poll() is None:
            family.update(child_pids(demo.pid))
            time.sleep(0.05)
        stdout, stderr = demo.communicate()
    assert demo.returncode == 0, stderr
    # Control: an aggregator, four agents and their trainers were seen while it ran.
    assert len(family) >= 9
    assert not [command_of(pid) for pid in family if memory(pid)]

    report = json.loads((out / "report.json").read_text())
    assert json.loads(stdout) == report
    assert [line for line in stderr.splitlines() if line.startswith("round  3/3: 4 devices")]

    final = (out / "digits-final.tflite").read_bytes()
    assert report["model_sha256"] == hashlib.sha256(final).hexdigest()
    assert len(report["accuracy_by_round"]) == 3
    assert 0.40 <= report["start_accuracy"] <= 0.55
    assert report["final_accuracy"] == report["accuracy_by_round"][-1]
    assert report["final_accuracy"] > report["start_accuracy"] + 0.2
    test = Dataset.from_arrays(*load_test(), Model.parse(final))
    assert evaluate(final, test).accuracy == report["final_accuracy"]

    assert 1000 < report["bytes_up_median"] < 20_000
    assert 1000 < report["bytes_down_median"] < len(final)
    assert report["bytes_down_first"] > 50_000
    assert 0 < report["round_overhead_s_median"] < 5
    assert 10 < report["device_idle_rss_mb"] < report["device_peak_rss_mb"] < 300
    assert 0 <= report["device_idle_cpu_percent"] < 0.5
    # It was measured while they held a check-in, not asleep after the task's end: the round beyond
    # the last one was open, and all but the device whose seat was taken trained in it.
    rounds = [
        json.loads(path.read_text())["round"] for path in out.glob("device-*/run/status.json")
    ]
    assert len([each for each in rounds if each > 3]) >= 3
    assert report["device_sampled_peak_rss_mb"] <= report["device_peak_rss_mb"]
    assert 0 < report["first_training_s"] <= report["first_training_s_max"] < report["wall_s"]
    assert sum(report["samples_by_device"]) == 4000
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    shards = [np.load(path) for path in sorted(out.glob("device-*/digits.npz"))]
    assert [len(shard["y"]) for shard in shards] == report["samples_by_device"]
    # No device was told an address: it is in none of their files.
    assert not [p for p in out.glob("device-*/*.toml") if "http" in p.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "--rounds", "100", "--out", str(tmp_path / "demo")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        until(
            lambda: sum("trainer.worker" in command_of(pid) for pid in child_pids(demo.pid)) == 4,
            timeout_s=30,
        )
        family = child_pids(demo.pid)
        assert len(family) >= 9
        demo.send_signal(number)
        demo.wait(timeout=15)
        _, stderr = demo.communicate()
    if number is signal.SIGKILL:
        # Agents die at once, and their trainers when they want to answer.
        until(lambda: not any(memory(pid) for pid in family), timeout_s=10)
    else:
        assert demo.returncode == 128 + number
        assert "no process is left" in stderr
        assert not [command_of(pid) for pid in family if memory(pid)]


@pytest.mark.slow
def test_failing_device_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(self: Fleet) -> None:
        healthy(self)
        np.savez(tmp_path / "demo" / "device-02" / "digits.npz", x=np.zeros((9, 3)), y=[0] * 9)

    healthy = Fleet.prepare
    before = set(child_pids(os.getpid()))  # of tests before this one, in the same process
    monkeypatch.setattr(Fleet, "prepare", prepare)
    monkeypatch.setattr("fedlearn_demo.fleet.DEADLINE_S", 4.0)
    settings = Settings(devices=2, rounds=1)
    display = PlainLines(Console(file=io.StringIO()), "a title", 1)
    with pytest.raises(FedlearnError, match="a device did not deliver") as caught:
        run(settings, tmp_path / "demo", display)
    assert caught.value.hint.startswith("device-02: ")
    assert set(child_pids(os.getpid())) <= before


@pytest.mark.parametrize(
    ("options", "complaint", "code"),
    [
        (["--devices", "4000"], "cannot serve 4000 clients", ExitCode.CONFIG),
        (["--learning-rate", "-1"], "--learning-rate: must be above 0", ExitCode.FAILURE),
        (["--rounds", "0"], "must be at least 1", ExitCode.USAGE),
        (["--tail", "head"], "invalid choice", ExitCode.USAGE),
    ],
)
def test_wrong_options_are_explained(
    options: list[str], complaint: str, code: ExitCode, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*COMMAND, "--out", str(tmp_path / "demo"), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    done = subprocess.run(
        [*COMMAND, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.CONFIG
    assert "name another folder with --out" in done.stderr
    assert (tmp_path / "thesis.tex").exists()
