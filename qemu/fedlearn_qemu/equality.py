# SPDX-License-Identifier: Apache-2.0
"""Whether a device computes the bits of this machine: the same scripts run on both."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fedlearn.errors import FedlearnError
from fedlearn_qemu.guest import Guest

_FORWARD = (
    "import hashlib, pathlib, sys; import numpy as np; from fedlearn.runtime import Session; "
    "x = np.load(sys.argv[2])['x'].astype(int).reshape(-1, 28, 28, 1) - 128; "
    "y = Session(pathlib.Path(sys.argv[1]).read_bytes()).run(x.astype(np.int8)); "
    "assert len(np.unique(y)) > 9; print(hashlib.sha256(y.tobytes()).hexdigest())"
)
_TRAIN = ("--tail", "dense", "--epochs", "1", "--seed", "3")
_LONG_S = 300.0


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 of outputs, and of a file that was trained."""

    forward: str
    trained: str


def here(model: Path, data: Path, out: Path) -> Digests:
    """Compute on this machine."""
    forward = _run(sys.executable, "-c", _FORWARD, str(model), str(data))
    _run(
        sys.executable,
        "-m",
        "fedlearn",
        "model",
        "train",
        str(model),
        str(data),
        "--out",
        str(out),
        *_TRAIN,
    )
    return Digests(_only(forward), _only(_run("sha256sum", str(out))))


def in_guest(guest: Guest, model: str, data: str) -> Digests:
    """Compute on the device; the paths are its own."""
    forward = guest.check(f"python3 -I -c {shlex.quote(_FORWARD)} {model} {data}", _LONG_S)
    out = "/tmp/trained.tflite"  # noqa: S108 - the guest's
    guest.check(f"fedlearn model train {model} {data} --out {out} {' '.join(_TRAIN)}", _LONG_S)
    return Digests(_only(forward), _only(guest.check(f"sha256sum {out}")))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FedlearnError(f"{command[0]} failed: {done.stderr.strip()[-400:]}")
    return done.stdout


def _only(text: str) -> str:
    found = re.findall(r"\b[0-9a-f]{64}\b", text)
    if len(found) != 1:
        raise FedlearnError(f"no digest in: {text.strip()[-200:]}")
    return str(found[0])
