# SPDX-License-Identifier: Apache-2.0
"""fedlearn-provision: what the boot partition has is taken over whole, or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYER = ROOT / "meta-fedlearn/recipes-fedlearn"
SCRIPT = LAYER / "fedlearn-provision/fedlearn-provision/fedlearn-provision"
NAMES = ("fedlearn.toml", "ca.pem", "token")


class Board:
    """A boot partition, /etc/fedlearn, and a `chgrp` that only notes the group."""

    def __init__(self, path: Path) -> None:
        self.boot, self.etc, self.tools = (path / name for name in ("boot", "etc", "tools"))
        for each in (self.boot, self.etc, self.tools):
            each.mkdir()
        self.tool("chgrp", f'echo "$1 $(basename "$2")" >> {path}/groups')
        self.groups = path / "groups"

    def tool(self, name: str, body: str) -> None:
        """Put a program in front of the machine's own."""
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def provision(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(SCRIPT), str(self.boot), str(self.etc)],
            env={"PATH": f"{self.tools}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    def taken(self) -> dict[str, bytes]:
        """All files in /etc/fedlearn, the hidden ones too."""
        return {path.name: path.read_bytes() for path in self.etc.iterdir() if path.is_file()}


@pytest.fixture
def board(tmp_path: Path) -> Board:
    board = Board(tmp_path)
    for name in NAMES:
        (board.boot / name).write_text(f"the {name}\n", encoding="utf-8")
    return board


def test_all_files_are_taken_over_with_their_modes(board: Board) -> None:
    done = board.provision()
    assert done.returncode == 0, done.stderr
    assert board.taken() == {name: f"the {name}\n".encode() for name in NAMES}
    modes = {path.name: path.stat().st_mode & 0o777 for path in board.etc.iterdir()}
    assert modes == {"fedlearn.toml": 0o644, "ca.pem": 0o644, "token": 0o640}
    assert board.groups.read_text("utf-8").count("fedlearn ") == 3
    assert done.stdout.strip().endswith("fedlearn.toml is taken over")  # it names the others


def test_a_second_boot_changes_nothing(board: Board) -> None:
    board.provision()
    before = {path.name: path.stat().st_ino for path in board.etc.iterdir()}
    done = board.provision()
    assert (done.returncode, done.stdout) == (0, "")
    assert {path.name: path.stat().st_ino for path in board.etc.iterdir()} == before


def test_a_changed_file_replaces_the_old_one(board: Board) -> None:
    board.provision()
    (board.boot / "fedlearn.toml").write_text("other\n", encoding="utf-8")
    assert board.provision().returncode == 0
    assert board.taken()["fedlearn.toml"] == b"other\n"


def test_what_the_boot_partition_lacks_stays(board: Board) -> None:
    board.provision()
    for name in NAMES:
        (board.boot / name).unlink()
    assert board.provision().returncode == 0
    assert set(board.taken()) == set(NAMES)


def test_what_a_cut_boot_left_is_removed(board: Board) -> None:
    (board.etc / ".token.new").write_text("hal", encoding="utf-8")
    assert board.provision().returncode == 0
    assert set(board.taken()) == set(NAMES)


@pytest.mark.parametrize("where", ["boot", "etc"])
def test_a_symbolic_link_is_refused(board: Board, where: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="utf-8")
    link = (board.boot if where == "boot" else board.etc) / "token"
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    done = board.provision()
    assert done.returncode == 1
    assert "token" in done.stderr
    assert secret.read_text("utf-8") == "secret"
    assert not (board.etc / "token").is_file() or (board.etc / "token").is_symlink()
    assert board.taken()["fedlearn.toml"] == b"the fedlearn.toml\n"  # the others still count


@pytest.mark.parametrize("where", ["boot", "etc"])
def test_a_linked_directory_is_refused(board: Board, where: str, tmp_path: Path) -> None:
    directory = board.boot if where == "boot" else board.etc
    directory.rename(tmp_path / "moved")
    directory.symlink_to(tmp_path / "moved")
    done = board.provision()
    assert done.returncode == 1
    assert "is no directory" in done.stderr


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "is empty"), (b"x" * 65537, "has more than 65536 bytes")]
)
def test_an_empty_or_huge_file_is_refused(board: Board, content: bytes, reason: str) -> None:
    (board.boot / "fedlearn.toml").write_bytes(content)
    done = board.provision()
    assert done.returncode == 1
    assert reason in done.stderr
    assert "fedlearn.toml" not in board.taken()


@pytest.mark.parametrize("tool", ["cat", "chgrp", "chmod"])
def test_a_copy_that_fails_leaves_the_old_file(board: Board, tool: str) -> None:
    (board.etc / "fedlearn.toml").write_text("old\n", encoding="utf-8")
    board.tool(tool, "exit 1")
    done = board.provision()
    assert done.returncode == 1
    assert "cannot be copied" in done.stderr
    assert board.taken() == {"fedlearn.toml": b"old\n"}


@pytest.mark.parametrize("tool", ["cat", "chmod", "sync", "mv"])
def test_a_power_cut_at_any_step_leaves_old_or_new(board: Board, tool: str) -> None:
    """The tool at which the power goes kills the script; the next boot completes its work."""
    (board.etc / "fedlearn.toml").write_text("old\n", encoding="utf-8")
    board.tool(tool, "kill -9 $PPID")
    assert board.provision().returncode != 0
    assert board.taken()["fedlearn.toml"] in (b"old\n", b"the fedlearn.toml\n")
    (board.tools / tool).unlink()
    assert board.provision().returncode == 0
    assert board.taken() == {name: f"the {name}\n".encode() for name in NAMES}
