# SPDX-License-Identifier: Apache-2.0
"""The README says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.agent.machine import mermaid

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_picture_of_the_agent_is_its_table() -> None:
    assert f"```mermaid\n{mermaid()}```" in README


def test_every_command_it_shows_exists() -> None:
    """Each `fedlearn ...` line's words before the first file or option are accepted."""
    commands = set(
        re.findall(
            r"^(fedlearn(?:-aggregator)?) ([a-z]+(?: (?:inspect|evaluate|train|score))?)",
            README,
            re.M,
        )
    )
    assert len(commands) >= 8
    for program, words in commands:
        package = program.replace("-", "_")
        result = subprocess.run(
            [sys.executable, "-m", f"{package}", *words.split(), "--help"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert result.returncode == 0, f"{program} {words}: {result.stderr}"


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = set(re.findall(r"make ([a-z][a-z-]+)", README))
    assert {"demo", "test"} <= named
    assert {name for name in named if not re.search(rf"^{name}:", makefile, re.M)} == set()


def test_every_file_it_names_exists() -> None:
    named = re.findall(r"`((?:client|aggregator|demo|tests)/[^`* ]*|[A-Z]+\.md)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("missing", ["no-such-target"])
def test_a_wrong_target_would_be_found(missing: str) -> None:
    """Control."""
    assert not re.search(rf"^{missing}:", (ROOT / "Makefile").read_text("utf-8"), re.M)
