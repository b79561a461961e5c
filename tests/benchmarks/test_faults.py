# SPDX-License-Identifier: Apache-2.0
"""The ordeals of `make bench-faults`, shortened, each beside a control that must fail."""

from __future__ import annotations

from pathlib import Path

import cbor2
import pytest

from tests.benchmarks.faults import churn, disk, killing, load, malformed, slow, soak

HERE = "tests.benchmarks.faults"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.mark.slow
def test_a_killed_aggregator_loses_nothing(folder: Path) -> None:
    figures = killing.ordeal(folder, kills=6, rounds=3, devices=4)
    assert killing.faults(figures) == []
    assert figures["kills"] == 6
    assert figures["acknowledged"] == 12


@pytest.mark.slow
def test_control_who_acknowledges_before_the_commit_loses_updates(folder: Path) -> None:
    figures = killing.ordeal(folder, kills=2, rounds=3, devices=4, module=f"{HERE}.hasty")
    assert "an acknowledged update is lost" in killing.faults(figures)


@pytest.fixture
def namespace() -> None:
    try:
        disk.in_namespace(["true"])
    except OSError as error:
        pytest.skip(f"a tmpfs of its own needs unshare (util-linux), a mount namespace: {error}")


@pytest.mark.slow
@pytest.mark.usefixtures("namespace")
def test_a_disk_that_refuses_costs_nothing(folder: Path) -> None:
    assert disk.faults(disk.ordeal(folder, points=16)) == []


@pytest.mark.usefixtures("namespace")
def test_control_who_does_not_look_at_the_disk_loses_updates(folder: Path) -> None:
    figures = disk.ordeal(folder, points=2, ack_anyway=True)
    assert "no_space: an acknowledged update is lost" in disk.faults(figures)


@pytest.mark.slow
def test_malformed_bodies(folder: Path) -> None:
    figures = malformed.ordeal(folder, codec_bodies=20_000, http_bodies=4_000)
    # Times are the benchmark's: here other tests have the processor.
    assert [each for each in malformed.faults(figures) if "slow" not in each] == []
    assert figures["codec"]["refused"] > 10_000


def test_control_without_the_walk_other_errors_escape() -> None:
    figures = malformed.against_the_codec(2_000, decode=cbor2.loads)
    assert figures["escaped"]


@pytest.mark.slow
def test_slow_peers_are_cut_off(folder: Path) -> None:
    figures = slow.ordeal(folder, slow=40, good=5, seconds=15)
    assert [each for each in slow.faults(figures) if "have to wait" not in each] == []


@pytest.mark.slow
def test_devices_that_leave(folder: Path) -> None:
    assert churn.faults(churn.ordeal(folder, devices=10, deadline_s=0.7)) == []


@pytest.mark.slow
def test_control_a_leak_is_seen(folder: Path) -> None:
    figures = soak.ordeal(folder, rounds=60, devices=4, module=f"{HERE}.leaky")
    assert {"memory grows", "files stay open"} <= set(soak.faults(figures))


def test_files_do_not_stay_open(folder: Path) -> None:
    """Memory and database need more rounds than a test has."""
    assert "files stay open" not in soak.faults(soak.ordeal(folder, rounds=60, devices=4))


def test_load_is_measured(folder: Path) -> None:
    (run,) = load.ordeal(folder, devices=(20,), rounds=2)["runs"]
    assert run["updates_a_second"] > 1
    assert 6000 < run["update_bytes"] < 12_000
