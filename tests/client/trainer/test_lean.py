# SPDX-License-Identifier: Apache-2.0
"""The trainer process imports no more than it needs, and works on what is left."""

from __future__ import annotations

import subprocess
import sys

import pytest

_WORKER = "import sys, fedlearn.trainer.worker; "
_LEAN = "from fedlearn.trainer.lean import import_lean; import_lean(); "
# What costs most: sub-packages of NumPy, OpenSSL, compression, logging.
_UNWANTED = ("numpy.random", "numpy.fft", "numpy.ma", "_hashlib", "_lzma", "_bz2", "ssl", "logging")


def _run(script: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()


def test_the_trainer_process_loads_none_of_it() -> None:
    script = _LEAN + _WORKER + f"print(*(set(sys.modules) & {set(_UNWANTED)}))"
    assert _run(script) == []


def test_without_it_the_trainer_would_load_some() -> None:
    """Control: the list above is about something."""
    script = _WORKER + f"print(*(set(sys.modules) & {set(_UNWANTED)}))"
    assert "_hashlib" in _run(script)


@pytest.mark.parametrize(
    "use",
    [
        "import hashlib; print(hashlib.sha256(b'').hexdigest()[:8])",
        "import io, numpy as np; b = io.BytesIO(); np.savez_compressed(b, x=np.arange(3)); "
        "b.seek(0); print(np.load(b)['x'].sum())",
        "import numpy as np; print(np.linalg.norm(np.ones(4)))",
    ],
    ids=["sha256", "npz", "linalg"],
)
def test_what_is_left_works(use: str) -> None:
    assert _run(_LEAN + use)[0] in {"e3b0c442", "3", "2.0"}
