# SPDX-License-Identifier: Apache-2.0
"""The command starts over as root of a namespace where it can, and goes on as it is where not."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from fedlearn_qemu import rootless


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is started in the place of this process."""
    found: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *words: found.append(words[1]))
    return found


def answer(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The kernel makes a namespace, or does not."""
    done = subprocess.CompletedProcess[bytes]((), code)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)


def test_a_user_becomes_root_of_a_namespace(
    monkeypatch: pytest.MonkeyPatch, started: list[Any]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    answer(monkeypatch, 0)
    rootless.enter(["--rounds", "1"])
    (words,) = started
    assert words[:2] == ["unshare", "--user"]
    assert words[-5:] == [sys.executable, "-m", "fedlearn_qemu", "--rounds", "1"]


@pytest.mark.parametrize(("user", "code"), [(1000, 1), (0, 0)])
def test_root_and_who_cannot_be_it_go_on(
    monkeypatch: pytest.MonkeyPatch, started: list[Any], user: int, code: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    answer(monkeypatch, code)
    rootless.enter([])
    assert started == []
