# SPDX-License-Identifier: Apache-2.0
"""The linters, as tests: one command runs everything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_MODULE = 600
# In two pieces, so that this line is none of those that are looked for.
LICENCE = "SPDX-License-Identifier: Apache-2.0"


def tracked(*endings: str) -> list[Path]:
    """Files of the project with these endings: those git knows of, or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    paths = [ROOT / name for name in listed]
    return [path for path in paths if path.name.endswith(endings) and path.is_file()]


def run(*command: str) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"


def tool(name: str) -> str:
    """A tool of this environment. One that is missing fails the test: nothing else would notice."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.fail(f"{name} is not installed in this environment: run `make lint`")
    return str(path)


def test_ruff_finds_nothing() -> None:
    run(tool("ruff"), "check", ".")


def test_code_is_formatted() -> None:
    run(tool("ruff"), "format", "--check", ".")


@pytest.mark.slow
def test_types_hold() -> None:
    packages = ("client/fedlearn", "aggregator/fedlearn_aggregator", "demo/fedlearn_demo")
    run(tool("mypy"), *packages, "qemu/fedlearn_qemu")


@pytest.mark.slow
def test_types_of_the_tests_hold() -> None:
    run(tool("mypy"), "tests")


def test_shell_scripts_are_clean() -> None:
    scripts = [path for path in tracked("run", ".sh") if path.read_bytes().startswith(b"#!")]
    assert scripts
    run(tool("shellcheck"), *map(str, scripts))


@pytest.mark.parametrize("endings", [(".py",), (".toml",), ("Makefile", "run"), (".cddl",)])
def test_every_source_file_names_its_licence(endings: tuple[str, ...]) -> None:
    files = tracked(*endings)
    assert files
    assert not [str(path.relative_to(ROOT)) for path in files if licences(path) != 1]


def licences(path: Path) -> int:
    """How many of a file's first lines name the licence; a script's first is its interpreter."""
    return sum(LICENCE in line for line in path.read_text("utf-8").splitlines()[:4])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_missing_and_a_repeated_licence_would_be_found(tmp_path: Path, count: int) -> None:
    """Control."""
    source = tmp_path / "source.py"
    source.write_text(f"# {LICENCE}\n" * count + '"""Text."""\n\n\n', encoding="utf-8")
    assert licences(source) == count


def test_no_module_is_too_long() -> None:
    long = [
        str(path.relative_to(ROOT))
        for path in tracked(".py")
        if len(path.read_text("utf-8").splitlines()) > LONGEST_MODULE
    ]
    assert not long


def test_nothing_of_this_machine_is_in_the_tree() -> None:
    """A path of somebody's home or a registry's address works on one machine only."""
    words = [str(ROOT) + "/", str(Path.home()) + "/"]
    found = [
        str(path.relative_to(ROOT))
        for path in tracked(".py", ".md", ".toml", "Makefile", "run", ".yml")
        if any(word in path.read_text("utf-8") for word in words)
    ]
    assert not found


def test_the_linters_can_fail(tmp_path: Path) -> None:
    """Control: a file with a fault is found."""
    bad = tmp_path / "bad.py"
    bad.write_text("import os\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="F401"):
        run(tool("ruff"), "check", "--isolated", str(bad))
    bad.write_text("x = {'a':1}\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="would be reformatted"):
        run(tool("ruff"), "format", "--check", "--isolated", str(bad))
    if shutil.which("git") is None:
        pytest.fail("git is needed to list the files of the project")


@pytest.mark.slow
def test_the_type_checker_can_fail(tmp_path: Path) -> None:
    """Control, with the project's own settings: only they ask for the annotation."""
    bad = tmp_path / "bad.py"
    bad.write_text("def untyped(x):\n    return x\n", encoding="utf-8")
    config = ("--config-file", str(ROOT / "pyproject.toml"))
    with pytest.raises(AssertionError, match="no-untyped-def"):
        run(tool("mypy"), *config, str(bad))
    bad.write_text("def typed(x: int) -> int:\n    return x\n", encoding="utf-8")
    run(tool("mypy"), *config, str(bad))


def test_the_shell_checker_can_fail(tmp_path: Path) -> None:
    """Control: an unquoted variable is found."""
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/bin/sh\nrm -f $1/x\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="SC2086"):
        run(tool("shellcheck"), str(bad))
