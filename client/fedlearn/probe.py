# SPDX-License-Identifier: Apache-2.0
"""Does the TFLite runtime survive a file? A child process finds out.

`fedlearn.model.validate` refuses what is known to crash the runtime, but a C++ library can hold
what nobody knows. So a file that a person names is opened and run once in a child before it is
opened here. The agent needs none of this: its trainer is a child already.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from fedlearn.errors import FedlearnError, ModelError
from fedlearn.model import Model
from fedlearn.runtime import Session
from fedlearn.text import clean

# The child imports what this process imports: isolated it would miss a package that PYTHONPATH or
# the user's own site-packages hold.
_ROOT = str(Path(__file__).resolve().parents[1])
_PATHS = sys.path if _ROOT in sys.path else [_ROOT, *sys.path]
COMMAND = (
    sys.executable,
    "-I",
    "-c",
    f"import sys; sys.path[:] = {_PATHS!r}; from fedlearn.probe import main; main()",
)
# One sample through the model; minutes would mean hours of training.
TIMEOUT_S = 60.0
# The last thing the child says. An exit code of 0 alone could be any program's.
_DONE = b"fedlearn: the probe is done\n"


def probe(data: bytes) -> None:
    """Raise ModelError when the runtime crashes on the file, or is not done with a sample in time.

    What it refuses in good order is no matter of this: it will say so again. FedlearnError means
    that the child itself failed, so that nothing is known of the file.
    """
    try:
        done = subprocess.run(
            COMMAND, input=data, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"the TFLite runtime needs more than {TIMEOUT_S:g} s for one sample"
        ) from error
    except OSError as error:
        raise FedlearnError(f"cannot start the check of the file: {error.strerror}") from error
    if done.returncode < 0:
        raise ModelError(
            f"the TFLite runtime crashes on this file ({_signal(-done.returncode)})",
            hint="convert the model again",
        )
    if done.returncode != 0 or not done.stdout.endswith(_DONE):
        said = clean((done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1])
        raise FedlearnError(
            f"the check of the file did not work: exit code {done.returncode}, it said {said}",
            hint="the file may be sound; please report this",
        )


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals, which have no names
        return f"signal {number}"


def run_once(data: bytes) -> None:
    """Open the int8 part of a file as training and as evaluation do, and run one batch of zeros."""
    model = Model.parse(data)
    samples = np.zeros(model.tensors[model.entry].shape, np.int8)
    for delegates in (False, True):
        with contextlib.suppress(FedlearnError):
            Session(model.cut([model.exit]), delegates=delegates).run_all(samples)


def main() -> None:
    """The child: try the file on its standard input."""
    with contextlib.suppress(FedlearnError):
        run_once(sys.stdin.buffer.read())
    sys.stdout.buffer.write(_DONE)
    sys.stdout.buffer.flush()
