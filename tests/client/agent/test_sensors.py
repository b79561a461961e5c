# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlearn.agent import sensors
from fedlearn.agent.policy import Readings, judge
from fedlearn.agent.sensors import oom_kills

from .board import Board
from .test_policy import ALL

FILES = [
    "sys/class/power_supply/AC/type",
    "sys/class/power_supply/AC/online",
    "sys/class/power_supply/BAT0/type",
    "sys/class/power_supply/BAT0/capacity",
    "sys/class/power_supply/BAT0/status",
    "sys/class/power_supply/BAT0/scope",
    "sys/class/thermal/thermal_zone0/temp",
    "proc/loadavg",
    "proc/pressure/memory",
    "proc/meminfo",
    "proc/self/cgroup",
    "sys/fs/cgroup/system.slice/fedlearn.service/memory.events",
]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "root")


def read(board: Board) -> Readings:
    return sensors.read(ALL, board.root)


def test_a_whole_board(board: Board) -> None:
    board.plug(True)
    board.battery(81)
    board.temperature(48.3)
    board.load(1.25)
    board.pressure(3.5)
    board.memory(123_456)
    board.oom_kills(3)
    now = read(board)
    assert (now.on_mains, now.battery_percent, now.temperature_c) == (True, 81, 48.3)
    assert (now.load, now.memory_pressure_percent) == (1.25, 3.5)
    assert now.available_memory_kib == 123_456
    assert now.cores == os.cpu_count()
    assert oom_kills(board.root) == 3


def test_a_board_without_sensors(board: Board) -> None:
    now = read(board)
    assert now == Readings(minute=now.minute, cores=now.cores)
    assert oom_kills(board.root) is None


def test_only_what_has_a_limit_is_read(board: Board) -> None:
    board.temperature(48.3)
    limits = type(ALL)(max_load_per_core=1)
    assert sensors.read(limits, board.root).temperature_c is None


def test_the_hottest_zone_counts_and_disabled_ones_do_not(board: Board) -> None:
    for zone, celsius in enumerate((40.0, 71.5, -274.0, 2147483.647)):
        board.temperature(celsius, zone)
    board.write("sys/class/thermal/cooling_device0/temp", "99000")
    assert read(board).temperature_c == 71.5


@pytest.mark.parametrize(
    ("status", "on_mains"),
    [("Charging", True), ("Full", True), ("Not charging", True), ("Discharging", False)],
)
def test_a_battery_alone_tells_whether_there_is_mains(
    board: Board, status: str, on_mains: bool
) -> None:
    board.battery(50, status)
    assert read(board).on_mains is on_mains


def test_a_plug_knows_better_than_the_battery(board: Board) -> None:
    board.battery(100, "Discharging")
    board.plug(True, "USB")
    assert read(board).on_mains is True
    board.plug(False, "USB")
    assert read(board).on_mains is False


def test_the_emptiest_battery_counts_and_that_of_a_mouse_does_not(board: Board) -> None:
    board.battery(80, name="BAT0")
    board.battery(40, name="BAT1")
    board.battery(5, name="mouse")
    board.write("sys/class/power_supply/mouse/scope", "Device\n")
    assert read(board).battery_percent == 40


def test_a_kernel_that_has_psi_off_and_a_sensor_that_fails(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.pressure(50)
    board.temperature(90)
    assert read(board).memory_pressure_percent == 50  # the control

    def fail(self: Path, *_: object, **__: object) -> object:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(Path, "open", fail)
    now = read(board)
    assert now.memory_pressure_percent is None
    assert now.temperature_c is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from(FILES),
        st.binary(max_size=40)
        | st.sampled_from(
            [b"", b"nan", b"-inf", b"9" * 5000, b"1e999", b"some avg10=", b"0::/../.."]
        )
        | st.integers(-(2**70), 2**70).map(lambda n: str(n).encode())
        | st.sampled_from(
            [b"Battery", b"Mains", b"oom_kill x", b"0::/\x00", b"MemAvailable: -5 kB"]
        ),
    )
)
def test_any_garbage_is_survived_and_makes_no_reading_that_cannot_be(
    board: Board, files: dict[str, bytes]
) -> None:
    for name in FILES:
        (board.root / name).unlink(missing_ok=True)
    for name, content in files.items():
        board.write(name, content)
    now = read(board)
    assert now.battery_percent is None or 0 <= now.battery_percent <= 100
    assert now.temperature_c is None or -60 <= now.temperature_c <= 200
    assert now.memory_pressure_percent is None or 0 <= now.memory_pressure_percent <= 100
    assert now.load is None or now.load >= 0
    assert now.available_memory_kib is None or now.available_memory_kib >= 0
    oom_kills(board.root)
    judge(ALL, now, judge(ALL, now))


def test_folders_where_files_should_be(board: Board) -> None:
    for name in FILES:
        (board.root / name).mkdir(parents=True)
    now = read(board)
    assert now == Readings(minute=now.minute, cores=now.cores)


def test_the_minute_is_that_of_the_local_zone(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = []
    for zone in ("UTC0", "EST5"):
        monkeypatch.setenv("TZ", zone)
        minute = read(board).minute
        assert minute is not None
        minutes.append(minute)
    monkeypatch.undo()
    time.tzset()
    assert (minutes[0] - minutes[1]) % 1440 in (299, 300)


def test_this_machine_can_be_read() -> None:
    now = sensors.read(ALL)
    assert now.load is not None
    assert now.available_memory_kib is not None
