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

import numpy as np

from fedlearn.errors import FedlearnError, ModelError
from fedlearn.model import Model
from fedlearn.runtime import Session

COMMAND = (sys.executable, "-I", "-m", "fedlearn.probe")
# One sample through the model; minutes would mean hours of training.
TIMEOUT_S = 60.0


def probe(data: bytes) -> None:
    """Raise ModelError when the runtime crashes on the file, or is not done with a sample in time.

    What it refuses in good order is no matter of this: it will say so again.
    """
    try:
        done = subprocess.run(
            COMMAND,
            input=data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"the TFLite runtime needs more than {TIMEOUT_S:g} s for one sample"
        ) from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ModelError(
            f"the TFLite runtime crashes on this file ({name})", hint="convert the model again"
        )


def run_once(data: bytes) -> None:
    """Open the int8 part of a file as training and as evaluation do, and run one batch of zeros."""
    model = Model.parse(data)
    samples = np.zeros(model.tensors[model.entry].shape, np.int8)
    for delegates in (False, True):
        with contextlib.suppress(FedlearnError):
            Session(model.cut([model.exit]), delegates=delegates).run_all(samples)


if __name__ == "__main__":
    with contextlib.suppress(FedlearnError):
        run_once(sys.stdin.buffer.read())
