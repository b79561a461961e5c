# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fedlearn.agent.permission import Forbidden, Permission
from fedlearn.config import PolicyConfig

from .board import Board


def test_it_is_asked_and_demanded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    board = Board(tmp_path / "root")
    permission = Permission(PolicyConfig(max_temperature_c=70), 1, board.root)
    board.temperature(60)
    permission.demand()  # the control
    board.temperature(71)
    for _ in range(3):
        with pytest.raises(Forbidden):
            permission.demand()
    assert permission.verdict.reason == "71 C, limit 70 C"
    board.temperature(60)
    assert permission.ask().allows
    assert [record.message for record in caplog.records] == [
        "the policy forbids training: 71 C, limit 70 C",
        "the policy allows training again",
    ]


def test_an_absent_sensor_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    board = Board(tmp_path / "root")
    permission = Permission(PolicyConfig(max_temperature_c=70), 1, board.root)
    for _ in range(3):
        permission.demand()
    (record,) = caplog.records
    assert "temperature not known, limit 70 C; it holds nothing back" in record.message
