# SPDX-License-Identifier: Apache-2.0
"""Labelled samples on the device, in the model's own int8 input grid."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import DatasetError, MissingFileError
from fedlearn.model import Model

# Values that the input's int8 cannot hold are clipped. A sensor may clip now and then; when so many
# do, the data are in other units than the model.
_MOST_CLIPPED = 0.1

# Raw bytes, such as the pixels of an image, stand for 0..1 as in every digit and image task.
_RAW_SCALE = 1.0 / 255.0


_WRITE = "write it with numpy.savez(path, x=samples, y=labels)"


@dataclass(frozen=True, eq=False)
class Dataset:
    """`inputs` int8 (N, ...) as the model takes them, `labels` int64 (N,) class numbers."""

    inputs: NDArray[np.int8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Dataset:
        """The samples with these numbers."""
        return Dataset(self.inputs[rows], self.labels[rows])

    @classmethod
    def load(cls, path: Path | str, model: Model) -> Dataset:
        """Read an `.npz` file with the arrays `x` and `y` and quantise it for `model`.

        `x` has shape (N, ...) with as many values a sample as the model's input; uint8 is raw and
        taken as x/255, floats are real units, int8 is already quantised. `y` holds N class
        numbers. Raises DatasetError with the reason when the file does not fit, and
        MissingFileError when there is none.
        """
        try:
            archive = np.load(path, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DatasetError(f"{path} is an .npy file", hint=_WRITE)
            with archive:
                x, y = archive["x"], archive["y"]
        except DatasetError:
            raise
        except FileNotFoundError as error:
            raise MissingFileError(
                f"there is no data file {path}", hint="name an .npz file with arrays x and y"
            ) from error
        except KeyError as error:
            raise DatasetError(f"{path} lacks an array", hint=_WRITE) from error
        except Exception as error:  # whatever NumPy, zipfile and zlib make of damaged bytes
            raise DatasetError(f"{path} is no usable .npz file", hint=_WRITE) from error
        try:
            return cls.from_arrays(x, y, model)
        except DatasetError as error:
            raise DatasetError(f"{path}: {error.message}", hint=error.hint) from error

    @classmethod
    def from_arrays(cls, x: NDArray[np.generic], y: NDArray[np.generic], model: Model) -> Dataset:
        """Quantise arrays as `load` does."""
        entry, exit_ = model.tensors[model.entry], model.tensors[model.exit]
        shape, classes = entry.shape[1:], prod(exit_.shape[1:])
        if x.ndim == 0 or len(x) == 0:
            raise DatasetError("there are no samples", hint=_WRITE)
        if prod(x.shape[1:]) != prod(shape):
            raise DatasetError(
                f"the samples have shape {x.shape}, the model takes (N, {str(shape)[1:]}"
            )
        if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
            raise DatasetError(
                f"the labels are {y.dtype}{y.shape}, not one class number for each of the "
                f"{len(x)} samples",
                hint="y.astype(int) makes numbers of floats, y.argmax(axis=1) of one-hot rows",
            )
        labels = y.astype(np.int64)
        if labels.min() < 0 or labels.max() >= classes:
            raise DatasetError(
                f"labels run from {labels.min()} to {labels.max()}, the model has {classes} classes"
            )
        x = x.reshape(len(x), *shape)
        return cls(_quantise(x, entry.scale, entry.zero_point), labels)


def _quantise(x: NDArray[np.generic], scale: float, zero_point: int) -> NDArray[np.int8]:
    if x.dtype == np.int8:
        return np.ascontiguousarray(x, np.int8)
    if x.dtype == np.uint8:
        # Only 256 values: a table, so that a large set never stands in memory as floats.
        levels = np.arange(256) * _RAW_SCALE
        return _to_int8(np.rint(levels / scale) + zero_point)[x]
    if not np.issubdtype(x.dtype, np.floating):
        raise DatasetError(f"samples of type {x.dtype} are not supported: use uint8, int8 or float")
    if not np.isfinite(x).all():
        raise DatasetError("the samples hold NaN or infinite values")
    steps = np.rint(x.astype(np.float64) / scale) + zero_point
    clipped = float(((steps < -129) | (steps > 128)).mean())
    if clipped > _MOST_CLIPPED:
        low, high = ((limit - zero_point) * scale for limit in (-128, 127))
        raise DatasetError(
            f"{clipped:.0%} of the values lie outside the model's input range: they run from "
            f"{x.min():g} to {x.max():g}, it takes {low:g} to {high:g}",
            hint="scale them as for the training of the model; raw bytes belong in uint8",
        )
    return _to_int8(steps)


def _to_int8(steps: NDArray[np.float64]) -> NDArray[np.int8]:
    return np.clip(steps, -128, 127).astype(np.int8)
