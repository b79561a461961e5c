# SPDX-License-Identifier: Apache-2.0
"""Killed at any moment, the aggregator goes on in the same round to the same final model."""

import hashlib
from pathlib import Path

import pytest

from fedlearn.wire.messages import TrainOrder
from tests.aggregator.devices import Answer, Device, start_model
from tests.aggregator.process import Aggregator, init, run, serve

NAMES = ("a", "b", "c")
# FedAdam has the most state that a restart could lose.
OPTIONS = (
    *("--cohort", "3", "--rounds", "2", "--seed", "5", "--over-selection", "1"),
    *("--optimizer", "fedadam"),
)
# And these need all updates of the round at once.
ROBUST = (*OPTIONS, "--aggregation", "median", "--clip-update-norm", "1")


def export(data_dir: Path) -> str:
    """The digest of the newest model."""
    target = data_dir / "out.tflite"
    done = run("export", "--data-dir", str(data_dir), str(target))
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    assert digest in done.stdout
    return digest


def deliver(aggregator: Aggregator, name: str) -> tuple[TrainOrder, bytes, Answer]:
    device = aggregator.device(name)
    order = device.order()
    body = device.train(order)
    answer = device.send(order.round, body)
    device.close()
    return order, body, answer


def finish(aggregator: Aggregator, *names: str) -> None:
    """The rest of the task: these devices, one after the other."""
    for name in names:
        assert deliver(aggregator, name)[2].status == 201
    assert aggregator.process.wait(10) == 0  # --exit-when-done


@pytest.fixture(scope="module", params=[OPTIONS, ROBUST], ids=["mean", "median"])
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]) -> str:
    data_dir = tmp_path_factory.mktemp("undisturbed")
    init(data_dir, *options)
    with serve(data_dir, "--no-mdns", "--exit-when-done") as aggregator:
        finish(aggregator, *NAMES, *NAMES)
    return export(data_dir)


def test_killed_in_mid_round_it_ends_with_the_same_model(
    tmp_path: Path, undisturbed: str, options: tuple[str, ...]
) -> None:
    init(tmp_path, *options)
    with serve(tmp_path, "--no-mdns") as aggregator:
        order, body, answer = deliver(aggregator, "b")
        assert answer.status == 201
        trained = aggregator.device("c").order()  # has its seat and trains while we die
        aggregator.kill()
    with serve(tmp_path, "--no-mdns", "--exit-when-done") as aggregator:
        again = aggregator.device("b").send(order.round, body)
        assert (again.status, again.receipt.duplicate) == (200, True)
        # The device's seat outlived the crash: its update is welcome without a new check-in.
        device = aggregator.device("c")
        assert device.send(1, device.train(trained)).status == 201
        finish(aggregator, "a", *NAMES)
    assert export(tmp_path) == undisturbed


def test_killed_again_and_again_it_ends_with_the_same_model(
    tmp_path: Path, undisturbed: str, options: tuple[str, ...]
) -> None:
    init(tmp_path, *options)
    for name in ("c", "a"):
        with serve(tmp_path, "--no-mdns") as aggregator:
            assert deliver(aggregator, name)[2].status == 201
            aggregator.kill()
    with serve(tmp_path, "--no-mdns") as aggregator:
        # The last update of the round: it is killed while it aggregates, or just after.
        assert deliver(aggregator, "b")[2].status == 201
        aggregator.kill()
    with serve(tmp_path, "--no-mdns") as aggregator:
        assert deliver(aggregator, "c")[0].round == 2
        aggregator.kill()
    with serve(tmp_path, "--no-mdns", "--exit-when-done") as aggregator:
        finish(aggregator, "b", "a")
    assert export(tmp_path) == undisturbed


def test_the_control_another_update_gives_another_model(
    tmp_path: Path, undisturbed: str, options: tuple[str, ...]
) -> None:
    init(tmp_path, *options)
    with serve(tmp_path, "--no-mdns", "--exit-when-done") as aggregator:
        finish(aggregator, "a", "b", "x", *NAMES)
    assert undisturbed != export(tmp_path) != start_model().digest.hex()


def test_a_second_aggregator_of_the_same_directory_is_refused(tmp_path: Path) -> None:
    init(tmp_path, *OPTIONS)
    with serve(tmp_path, "--no-mdns") as aggregator:
        second = run("serve", "--data-dir", str(tmp_path), "--insecure", "--port", "0")
        assert second.returncode == 74
        assert "in use" in second.stderr
        assert Device(aggregator.url, "a").request("GET", "/healthz").body == b"ok"
