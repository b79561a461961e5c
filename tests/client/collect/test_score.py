# SPDX-License-Identifier: Apache-2.0
"""Scores: a stream that becomes strange is told from one that stays what it was."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest

from fedlearn.anomaly import anomaly_scores
from fedlearn.cli import main
from fedlearn.collect.grid import Grid
from fedlearn.collect.report import CollectStatus, Score, describe
from fedlearn.collect.ring import read_ring
from fedlearn.collect.score import Scorer
from fedlearn.model import Model
from tests import models
from tests.client.collect.harness import Collecting, Port

MODEL = Model.parse(models.AUTOENCODER_PATH.read_bytes())
ENTRY = MODEL.tensors[MODEL.entry]
CONFIGURATION = f"""
[device]
state_dir = "state"
runtime_dir = "run"
[aggregator]
task = "pumps"
insecure = true
[source]
kind = "serial"
port = "port"
[samples]
channels = ["g"]
window = 64
step = {ENTRY.scale!r}
zero_point = {ENTRY.zero_point}
[ring]
sync_s = 0.1
[score]
enabled = true
quantile = 0.99
"""


def text(windows: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    return b"".join(b"%.6f\n" % value for value in windows.ravel())


def train(device: Collecting) -> Model:
    """Let the autoencoder learn the ring, and put it where the agent has its models."""
    folder = device.path / "state/models"
    folder.mkdir(parents=True)
    out = folder / "trained.tflite"
    command = ["model", "train", str(models.AUTOENCODER_PATH), str(device.ring), "--out", str(out)]
    assert main([*command, "--loss", "mean_squared_error", "--epochs", "60"]) == 0
    return Model.parse(out.read_bytes())


def test_a_fault_is_told_from_the_machine_as_it_was(
    device: Collecting, port: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    config = device.path / "device.toml"
    config.write_text(CONFIGURATION)
    device.start()
    device.until(lambda status: status.state == "reading")
    normal = models.load_vibration_test()
    port.send(b"\n" + text(normal[:300]))
    device.until(lambda status: status.stored == 300)
    assert device.status.score is None  # there was no model
    device.stop()

    model = train(device)
    device.start()
    device.until(lambda status: status.state == "reading")
    port.send(b"\n" + text(normal[300:350]))
    status = device.until(lambda status: status.stored == 50 and status.score is not None)
    time.sleep(1.5)  # the last scores are on their way
    status = device.status
    assert status.score is not None
    _, windows = read_ring(device.ring)
    inputs = np.frombuffer(b"".join(each.data for each in windows), np.int8).reshape(-1, 64)
    scores = anomaly_scores(model, inputs[:300])
    assert status.score.threshold == pytest.approx(np.quantile(scores, 0.99), rel=0.1)
    assert status.anomalies <= 5  # control: it is no alarm for everything
    before = status.anomalies
    capsys.readouterr()

    fault = models.load_vibration_fault("slow")[:40]
    port.send(text(fault))
    status = device.until(lambda status: status.anomalies > before + 20)
    assert status.score is not None
    assert status.score.model == model.digest.hex()
    # There is no agent, but what the sensor says is shown.
    assert main(["status", "--config", str(config)]) == 1
    assert "an anomaly (threshold" in capsys.readouterr().out


def test_what_the_status_says() -> None:
    for score, words in (
        (Score(2.0, None, "m"), "no threshold yet"),
        (Score(2.0, 3.0, "m"), "normal"),
        (Score(4.0, 3.0, "m"), "an anomaly"),
    ):
        assert words in describe(CollectStatus(pid=os.getpid(), score=score))


def scorer(path: Path, program: str) -> Scorer:
    script = path / "scorer.py"
    script.write_text(program)
    (path / "model.tflite").touch()
    grid = Grid(("g",), 64, (0.0,), (1.0,), 0.1, 0)
    return Scorer(path, path, grid, 0.99, (sys.executable, str(script)))


def test_the_stream_never_waits_for_the_scorer(tmp_path: Path) -> None:
    hangs = scorer(tmp_path, "import time; time.sleep(60)")
    start = time.monotonic()
    for _ in range(20_000):
        hangs.offer(bytes(64))
        hangs.poll()
    assert time.monotonic() - start < 10
    assert hangs.missed > 1000
    process = hangs._process
    hangs.close()
    assert isinstance(process, Popen)
    assert process.returncode == -signal.SIGKILL


def test_without_a_model_no_scorer_is_started(tmp_path: Path) -> None:
    idle = scorer(tmp_path, "")
    (tmp_path / "model.tflite").unlink()
    idle.offer(bytes(64))
    assert idle.missed == 1
    (tmp_path / "model.tflite").touch()
    idle.offer(bytes(64))
    assert (idle.missed, idle._process is None) == (1, False)  # control
    idle.close()


def test_a_scorer_that_dies_or_talks_nonsense_does_no_harm(tmp_path: Path) -> None:
    nonsense = scorer(tmp_path, "print('no JSON', flush=True); print('{}', flush=True)")
    give_up = time.monotonic() + 20
    nonsense.offer(bytes(64))
    while nonsense._process is not None and time.monotonic() < give_up:
        nonsense.offer(bytes(64))
        nonsense.poll()
        time.sleep(0.01)
    assert nonsense._process is None
    assert nonsense.latest is None
    nonsense.offer(bytes(64))  # it is not started again at once
    assert nonsense._process is None
    nonsense.close()
