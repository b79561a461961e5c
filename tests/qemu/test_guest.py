# SPDX-License-Identifier: Apache-2.0
"""The frames of the channel of proof, with a shell of this machine and with bytes that lie."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn_qemu.guest import MAX_LINE_BYTES, GuestError, Result, parse, request

NUMBER = "0123456789abcdef"
# CONFIG_DESKTOP is off in OE-core's BusyBox: od [-abcdeFfhiloxsv] [FILE]
OD = """#!/bin/sh
for word; do
    case $word in -*[!abcdeFfhiloxsv]*) exit 1 ;; esac
done
exec {od} "$@"
"""


def frame(code: int, output: bytes, length: int | None = None) -> bytes:
    mark = f"FEDLEARN{NUMBER}"
    shown = len(output) if length is None else length
    lines = "".join(
        f"{at:07o} {' '.join(f'{byte:03o}' for byte in output[at : at + 16])}\r\n"
        for at in range(0, len(output), 16)
    )
    return f"# \r\n{mark} {code} {shown}\r\n{lines}{len(output):07o}\r\n{mark}.\r\n".encode()


@given(st.integers(0, 255), st.binary(max_size=200), st.binary(max_size=50))
def test_a_frame_holds_what_was_put_in(code: int, output: bytes, noise: bytes) -> None:
    found = parse(noise + b"\n" + frame(code, output) + b"# ", NUMBER)
    assert found == Result(code, output.decode(errors="replace"))


@given(st.binary(max_size=300))
def test_noise_is_no_answer(noise: bytes) -> None:
    assert parse(noise, NUMBER) is None


def test_every_cut_frame_is_not_complete_yet() -> None:
    whole = frame(0, b"hello").rstrip()
    for length in range(len(whole)):
        assert parse(whole[:length], NUMBER) is None
    assert parse(whole, NUMBER) == Result(0, "hello")


def test_a_frame_of_another_question_is_no_answer() -> None:
    assert parse(frame(0, b"hello"), "f" * 16) is None


@pytest.mark.parametrize(
    "answer", [frame(0, b"hello", 4), frame(0, b"x").replace(b" 170\r", b" 178\r")]
)
def test_a_garbled_frame_is_refused(answer: bytes) -> None:
    with pytest.raises(GuestError):
        parse(answer, NUMBER)


def test_an_echo_is_no_answer() -> None:
    """Control: the command holds the marker in two halves."""
    assert parse(request("true", NUMBER), NUMBER) is None


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, str]:
    """An environment whose od is no better than that of OE-core's BusyBox."""
    od = tmp_path / "bin/od"
    od.parent.mkdir()
    od.write_text(OD.format(od=shutil.which("od")), "utf-8")
    od.chmod(0o755)
    return {"PATH": f"{od.parent}:/usr/bin:/bin"}


def test_an_option_that_busybox_lacks_would_be_found(plain: dict[str, str]) -> None:
    """Control."""
    for options, refused in (("-An -v -tx1", True), ("-vb", False)):
        done = subprocess.run(["sh", "-c", f"od {options} /dev/null"], env=plain, check=False)
        assert (done.returncode != 0) == refused


SCRIPTS = ["echo 'a  b'; exit 7", "printf '\\000\\377\\n'", "printf %100s", "false", ":"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_real_shell_answers_as_it_would_alone(
    script: str, tmp_path: Path, plain: dict[str, str]
) -> None:
    alone = subprocess.run(["sh", "-c", script], capture_output=True, check=False)
    lines = request(script, NUMBER, str(tmp_path / "answer"))
    shell = subprocess.run(["sh"], input=lines, capture_output=True, check=True, env=plain)
    assert parse(shell.stdout, NUMBER) == Result(
        alone.returncode, alone.stdout.decode(errors="replace")
    )


def test_a_line_that_a_terminal_would_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        request("x" * MAX_LINE_BYTES, NUMBER)
