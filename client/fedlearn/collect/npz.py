# SPDX-License-Identifier: Apache-2.0
"""Prints an `.npz` as lines of text, for the process that collects and has no NumPy.

`python -m fedlearn.collect.npz FILE`: the samples of `x`, floats (N, channels) or, in windows,
(M, N, channels), and behind each its class from `y`, (N,) or (M,), if there is one. A line that is
no sample stands between two windows, which so stay apart.
"""

from __future__ import annotations

import sys

import numpy as np


def main(path: str) -> int:
    """Print the samples; returns an exit code."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x = np.asarray(arrays["x"], np.float64)
            y = arrays.get("y")
    except Exception as error:  # whatever NumPy, zipfile and zlib make of damaged bytes
        sys.stderr.write(f"{path} is no usable .npz file: {error}\n")
        return 1
    windows = x if x.ndim == 3 else x[np.newaxis]
    if windows.ndim != 3 or (y is not None and y.shape != x.shape[:1]):
        sys.stderr.write(f"{path}: x {x.shape} and y do not fit together\n")
        return 1
    for number, window in enumerate(windows):
        for place, row in enumerate(window):
            words = [repr(float(value)) for value in row]
            if y is not None:
                words.append(str(int(y[number if x.ndim == 3 else place])))
            sys.stdout.write(",".join(words) + "\n")
        if number + 1 < len(windows):
            sys.stdout.write("end of window\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
