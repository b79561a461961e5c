# SPDX-License-Identifier: Apache-2.0
"""The ring as training data. This is the trainer's side: it needs NumPy."""

from __future__ import annotations

from math import isclose, prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlearn.collect.grid import Grid
from fedlearn.collect.intervals import label_windows, read_intervals
from fedlearn.collect.ring import read_ring
from fedlearn.collect.windows import Window
from fedlearn.errors import DatasetError, MissingFileError
from fedlearn.model import Model

# Of windows that carry labels, those of this class are normal: an autoencoder learns them alone.
NORMAL = 0
_FILL = "fedlearn collect fills it"


def load_windows(
    path: Path, model: Model, loss: str | None
) -> tuple[NDArray[np.int8], NDArray[np.int64] | None]:
    """The windows as the model's int8 inputs, and their classes (N,) where `loss` needs them.

    Without a loss: all windows. Raises DatasetError with the reason when they do not fit.
    """
    grid, windows = _labelled(path)
    chosen: list[Window]
    labels = None
    if loss == "softmax_cross_entropy":
        chosen = [each for each in windows if each.label is not None]
        labels = np.array([each.label for each in chosen], np.int64)
        if not chosen:
            raise DatasetError(
                f"{path} holds {len(windows)} windows, none of them labelled",
                hint="fedlearn label, source.labelled or samples.rules gives them labels",
            )
    elif loss == "sigmoid_cross_entropy":
        raise DatasetError(
            f"a window of {path} has one class, {loss} needs several labels a sample",
            hint="write an npz file and name it as data.path",
        )
    else:
        chosen = _normal(windows) if loss else windows
        if not chosen:
            raise DatasetError(f"{path} holds no windows", hint=_FILL)
    return inputs_of(_array(grid, chosen), grid, model), labels


def normal_windows(path: Path, grid: Grid, most: int) -> NDArray[np.int8]:
    """The newest windows that nobody has labelled as a fault: int8 (N, window, channels)."""
    found, windows = _labelled(path)
    if found != grid:
        raise DatasetError(f"{path} holds windows of another grid", hint=_FILL)
    return _array(grid, _normal(windows)[-most:])


def inputs_of(windows: NDArray[np.int8], grid: Grid, model: Model) -> NDArray[np.int8]:
    """Windows int8 (N, window, channels) on the model's own input grid, flat for a flat model."""
    entry = model.tensors[model.entry]
    same = isclose(grid.step, entry.scale, rel_tol=1e-6) and grid.zero_point == entry.zero_point
    if not same:
        # 256 values to 256 values. It rounds a second time: better is samples.step = the scale.
        steps = (np.arange(-128, 128) - grid.zero_point) * (grid.step / entry.scale)
        table = np.clip(np.rint(steps) + entry.zero_point, -128, 127).astype(np.int8)
        windows = table[windows.astype(np.int16) + 128]
    if len([size for size in entry.shape[1:] if size != 1]) == 1:
        return windows.reshape(len(windows), prod(windows.shape[1:]))
    return windows


def _labelled(path: Path) -> tuple[Grid, list[Window]]:
    try:
        grid, windows = read_ring(path)
    except FileNotFoundError as error:
        raise MissingFileError(f"there are no windows in {path}", hint=_FILL) from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    return grid, label_windows(windows, read_intervals(path))


def _normal(windows: list[Window]) -> list[Window]:
    return [each for each in windows if each.label in (None, NORMAL)]


def _array(grid: Grid, windows: list[Window]) -> NDArray[np.int8]:
    data = np.frombuffer(b"".join(each.data for each in windows), np.int8)
    return data.reshape(len(windows), grid.window, len(grid.channels))
