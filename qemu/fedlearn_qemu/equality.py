# SPDX-License-Identifier: Apache-2.0
"""Whether a device trains the bits of this machine: the same command runs on both.

The interpreters themselves differ: in an output of some thousand, by one step.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fedlearn.errors import FedlearnError
from fedlearn_qemu.guest import Guest

_LONG_S = 300.0
_SEED = 3


@dataclass(frozen=True, slots=True)
class Trained:
    """The new file's SHA-256 in hexadecimal, and the seconds that the training took."""

    sha256: str
    train_s: float


def _options(tail: str, seed: int) -> list[str]:
    return ["--tail", tail, "--epochs", "1", "--seed", str(seed), "--json"]


def here(model: Path, data: Path, out: Path, *, tail: str, seed: int = _SEED) -> Trained:
    """Train on this machine."""
    command = [sys.executable, "-m", "fedlearn", "model", "train", str(model), str(data)]
    command += ["--out", str(out), *_options(tail, seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FedlearnError(f"{command[0]} failed: {done.stderr.strip()[-400:]}")
    return _trained(done.stdout)


def in_guest(guest: Guest, model: str, data: str, *, tail: str, seed: int = _SEED) -> Trained:
    """Train on the device; the paths are its own."""
    out = "/tmp/trained.tflite"  # noqa: S108 - the guest's
    options = shlex.join(_options(tail, seed))
    return _trained(
        guest.check(f"fedlearn model train {model} {data} --out {out} {options}", _LONG_S)
    )


def _trained(text: str) -> Trained:
    try:
        values = json.loads(text.strip().splitlines()[-1])
        return Trained(values["sha256"], values["train_s"])
    except (ValueError, LookupError) as error:
        raise FedlearnError(f"no result of a training: {text.strip()[-200:]}") from error
