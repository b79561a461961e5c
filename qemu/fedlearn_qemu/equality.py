# SPDX-License-Identifier: Apache-2.0
"""Whether a device trains the bits of this machine: the same command runs on both.

The interpreters themselves differ: in an output of some thousand, by one step.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from fedlearn.errors import FedlearnError
from fedlearn_qemu.guest import Guest

_LONG_S = 300.0
_SEED = 3


def _options(tail: str, seed: int) -> list[str]:
    return ["--tail", tail, "--epochs", "1", "--seed", str(seed), "--json"]


def here(model: Path, data: Path, out: Path, *, tail: str, seed: int = _SEED) -> str:
    """Train on this machine; the result is the new file's SHA-256."""
    command = [sys.executable, "-m", "fedlearn", "model", "train", str(model), str(data)]
    command += ["--out", str(out), *_options(tail, seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FedlearnError(f"{command[0]} failed: {done.stderr.strip()[-400:]}")
    return _digest(done.stdout)


def in_guest(guest: Guest, model: str, data: str, *, tail: str, seed: int = _SEED) -> str:
    """Train on the device; the paths are its own."""
    out = "/tmp/trained.tflite"  # noqa: S108 - the guest's
    options = shlex.join(_options(tail, seed))
    return _digest(
        guest.check(f"fedlearn model train {model} {data} --out {out} {options}", _LONG_S)
    )


def _digest(text: str) -> str:
    found = re.findall(r'"sha256": "([0-9a-f]{64})"', text)
    if len(found) != 1:
        raise FedlearnError(f"no digest in: {text.strip()[-200:]}")
    return str(found[0])
