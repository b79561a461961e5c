# SPDX-License-Identifier: Apache-2.0
"""The command as a person and a script use it: output, exit codes, a clean end."""

import http.client
import json
import signal
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import tflite

from fedlearn.errors import ConfigError, ExitCode
from fedlearn_aggregator import cli
from fedlearn_aggregator.checkins import HOLD_S
from fedlearn_aggregator.rounds import Policy
from tests.aggregator.devices import MODEL_PATH, TASK, Device, start_model
from tests.aggregator.process import COMMAND, init, run, serve
from tests.aggregator.service import make_task
from tests.client import networks


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """One command in this process."""
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def init_arguments(data_dir: Path, *others: str) -> list[str]:
    return [
        "init",
        "--data-dir",
        str(data_dir),
        "--task",
        TASK,
        "--model",
        str(MODEL_PATH),
        *others,
    ]


def test_a_pull_past_the_start_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = init_arguments(tmp_path, "--learning-rate", "0.5", "--proximal", "2")
    code, _, err = call(capsys, *arguments)
    assert code == ExitCode.CONFIG
    assert "must stay below 1" in err
    task = make_task(Policy(cohort=1, minimum=1))
    pulled = replace(task.plan, proximal=1.0 / task.plan.learning_rate)
    with pytest.raises(ConfigError, match="must stay below 1"):
        replace(task, plan=pulled)


def test_init_tells_what_will_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *init_arguments(tmp_path / "new", "--cohort", "5"))
    assert (code, err) == (0, "")
    assert "52,138 parameters in 8 tensors" in out
    assert "5 updates, 7 seats, at least 3" in out


def test_init_destroys_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *init_arguments(tmp_path))[0] == 0
    code, _, err = call(capsys, *init_arguments(tmp_path))
    assert code == ExitCode.CONFIG
    assert "--force" in err
    code, out, _ = call(capsys, *init_arguments(tmp_path, "--force"))
    assert code == 0
    assert "aggregator.sqlite.1.old" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--task", "a b"], ExitCode.CONFIG, "name"),
        (["--cohort", "0"], ExitCode.CONFIG, "cohort"),
        (["--minimum", "11"], ExitCode.CONFIG, "minimum"),
        (["--learning-rate", "nan"], ExitCode.USAGE, "learning-rate"),
        (["--patience", "2"], ExitCode.CONFIG, "--validation"),
        (["--class-weights", "1,2"], ExitCode.CONFIG, "2 class weights, the model has 10 classes"),
        (["--budget-kib", "3"], ExitCode.CONFIG, "the least needs"),
        (["--server-learning-rate", "-1"], ExitCode.CONFIG, "server learning rate"),
        (["--model", "/nowhere.tflite"], ExitCode.NO_INPUT, "nowhere"),
        (["--model", __file__], ExitCode.DATA, "no .tflite"),
        (["--optimizer", "sgd"], ExitCode.USAGE, "invalid"),
    ],
)
def test_init_says_what_is_wrong(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    try:
        result, _, err = call(capsys, *init_arguments(tmp_path, *arguments))
    except SystemExit as stopped:  # argparse
        result, err = int(stopped.code or 0), capsys.readouterr().err
    assert result == code
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "aggregator.sqlite").exists()


@pytest.mark.parametrize(("activation", "code"), [(0, ExitCode.OK), (4, ExitCode.DATA)])
def test_init_takes_no_model_that_no_device_can_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], activation: int, code: int
) -> None:
    rng = np.random.default_rng(0)

    def dense(network: networks.Network | None, source: int | None) -> networks.Network:
        return networks.layer(
            tflite.BuiltinOperator.FULLY_CONNECTED,
            rng,
            input_shape=(1, 4),
            output_shape=(1, 4),
            weight_shape=(4, 4),
            options=networks.fully_connected(activation=activation),
            terms=4,
            channel_axis=0,
            network=network,
            source=source,
        )

    network = dense(None, None)
    network = dense(network, network.outputs[0])
    (tmp_path / "model.tflite").write_bytes(network.write())
    arguments = ("--model", str(tmp_path / "model.tflite"))
    got, _, err = call(capsys, *init_arguments(tmp_path / "task", *arguments))
    assert got == code
    assert ("TANH" in err) == (code != ExitCode.OK)
    assert (tmp_path / "task").exists() == (code == ExitCode.OK)


def test_a_new_task_is_shown_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, *init_arguments(tmp_path))
    where = ["--data-dir", str(tmp_path)]
    assert "0 rounds closed" in call(capsys, "status", *where)[1]
    assert json.loads(call(capsys, "status", *where, "--json")[1])["task"] == TASK
    (first,) = json.loads(call(capsys, "rounds", *where, "--json")[1])
    assert (first["number"], first["state"]) == (1, "open")
    assert "open" in call(capsys, "rounds", *where)[1]
    target = tmp_path / "out.tflite"
    for arguments in ([], ["--round", "0"]):
        assert call(capsys, "export", *where, str(target), *arguments)[0] == 0
        assert target.read_bytes() == start_model().data
        target.unlink()
    code, _, err = call(capsys, "export", *where, str(target), "--round", "1")
    assert code == ExitCode.CONFIG
    assert "not ended" in err
    assert call(capsys, "status", "--data-dir", str(tmp_path / "none"))[0] == ExitCode.CONFIG
    assert json.loads(call(capsys, "version", "--json")[1])["version"]


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("init", "serve", "status", "rounds", "export"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, "--help"])
        assert stopped.value.code == 0
        assert "example" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly_and_quickly(tmp_path: Path, number: signal.Signals) -> None:
    init(tmp_path, "--cohort", "1", "--over-selection", "1")
    with serve(tmp_path, "--interface", "127.0.0.1") as aggregator:
        aggregator.device("first").order()
        held: list[object] = []
        waiting = threading.Thread(target=lambda: held.append(aggregator.device("x").wait()))
        waiting.start()
        idle = aggregator.device("idle")
        while b'fedlearn_held_checkins{task="digits"} 1' not in (
            idle.request("GET", "/metrics").body
        ):
            time.sleep(0.01)
        started = time.monotonic()
        code, log = aggregator.stop(number)
        assert time.monotonic() - started < HOLD_S / 2  # nobody was waited for
        waiting.join(5)
        assert len(held) == 1
        assert code == (ExitCode.OK if number is signal.SIGTERM else ExitCode.INTERRUPTED)
        assert "Traceback" not in log
        assert "published by mDNS" in log
    assert not (tmp_path / "serve.json").exists()
    assert not (tmp_path / "aggregator.sqlite-wal").exists()


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    init(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--data-dir", str(tmp_path), "--insecure", "--port", str(port))
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--insecure", "--host", "0.0.0.0"], ExitCode.UNAVAILABLE, "loopback"),
        (["--insecure", "--interface", "192.0.2.1"], ExitCode.CONFIG, "on loopback alone"),
        (["--insecure", "--interface", "eth0"], ExitCode.CONFIG, "on loopback alone"),
        (["--insecure", "--host", "host.invalid"], ExitCode.UNAVAILABLE, "--host"),
        (["--insecure", "--evaluate", "/nowhere.npz"], ExitCode.NO_INPUT, "nowhere"),
    ],
)
def test_serve_says_what_is_wrong(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    call(capsys, *init_arguments(tmp_path))
    result, _, err = call(capsys, "serve", "--data-dir", str(tmp_path), "--port", "0", *arguments)
    assert result == code
    assert words in err


def test_only_tls_1_3_is_spoken(tmp_path: Path) -> None:
    def healthz(address: str, context: ssl.SSLContext) -> bytes:
        connection = http.client.HTTPSConnection(address, timeout=5, context=context)
        with closing(connection):
            connection.request("GET", "/healthz")
            return connection.getresponse().read()

    init(tmp_path / "task")
    ca = tmp_path / "task/identity/ca.pem"
    with serve(tmp_path / "task", "--no-mdns", trust="") as aggregator:
        address = urlsplit(aggregator.url)
        assert address.scheme == "https"
        assert healthz(address.netloc, ssl.create_default_context(cafile=ca)) == b"ok"
        old = ssl.create_default_context(cafile=ca)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            healthz(address.netloc, old)
        with pytest.raises(ssl.SSLCertVerificationError):
            healthz(address.netloc, ssl.create_default_context())
        with pytest.raises((http.client.HTTPException, OSError)):
            Device(f"http://{address.netloc}", "a").request("GET", "/healthz")


def test_the_command_starts_quickly_without_the_server(tmp_path: Path) -> None:
    code = "import sys, fedlearn_aggregator.cli; print('aiohttp' in sys.modules)"
    done = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_models_are_judged_beside_the_rounds(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", x=np.zeros((8, 28, 28), np.uint8), y=np.arange(8))
    init(tmp_path, "--cohort", "1", "--rounds", "2")
    evaluate = ("--evaluate", str(tmp_path / "test.npz"))
    with serve(tmp_path, "--no-mdns", "--exit-when-done", *evaluate) as aggregator:
        device = Device(aggregator.url, "a")
        for _ in range(2):
            order = device.order()
            assert device.send(order.round, device.train(order)).status == 201
        assert aggregator.process.wait(10) == 0
    first, second = json.loads(run("rounds", "--json", "--data-dir", str(tmp_path)).stdout)
    for value in (first["accuracy"], first["base_accuracy"], second["accuracy"]):
        assert 0 <= value <= 1
    assert first["loss"] > 0
