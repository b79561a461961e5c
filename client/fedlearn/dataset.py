# SPDX-License-Identifier: Apache-2.0
"""Samples on the device, in the model's own int8 input grid, and what a loss compares with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.collect.training_set import load_windows
from fedlearn.errors import DatasetError, MissingFileError
from fedlearn.model import Model
from fedlearn.text import clean
from fedlearn.wire.messages import LOSSES

# Values that the input's int8 cannot hold are clipped. A sensor may clip now and then; when so many
# do, the data are in other units than the model.
_MOST_CLIPPED = 0.1

# Raw bytes, such as the pixels of an image, stand for 0..1 as in every digit and image task.
_RAW_SCALE = 1.0 / 255.0

# Values that are quantised at a time: in double precision, all of a large set would take eight
# times its own memory.
_BLOCK = 1 << 16


_WRITE = "write it with numpy.savez(path, x=samples, y=labels)"


@dataclass(frozen=True, eq=False)
class Dataset:
    """`inputs` int8 (N, ...) as the model takes them, and `labels` for one of the losses.

    softmax_cross_entropy: class numbers int64 (N,). sigmoid_cross_entropy: 0 or 1, uint8 (N, C).
    mean_squared_error: real values float32 (N, C), or for an autoencoder the inputs themselves.
    """

    inputs: NDArray[np.int8]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Dataset:
        """The samples with these numbers."""
        inputs = self.inputs[rows]
        return Dataset(inputs, inputs if self.labels is self.inputs else self.labels[rows])

    @classmethod
    def load(cls, path: Path | str, model: Model, loss: str = LOSSES[0]) -> Dataset:
        """Read an `.npz` file with the arrays `x` and `y` and quantise it for `model`; or a ring.

        `x` has shape (N, ...) with the model's input shape (axes of 1 count for nothing) or is
        flat, (N, number of values); uint8 is raw and taken as x/255, floats are real units, int8
        is already quantised. `y` is what `loss` needs: N class numbers, N rows of zeros and ones,
        or N rows of real values; without `y` a model with mean_squared_error learns to give its
        inputs back. Raises DatasetError with the reason when the file does not fit, and
        MissingFileError when there is none.
        """
        x, y = load_windows(Path(path), model, loss) if Path(path).is_dir() else _read(path, loss)
        try:
            return cls.from_arrays(x, y, model, loss)
        except DatasetError as error:
            raise DatasetError(f"{path}: {error.message}", hint=error.hint) from error

    @staticmethod
    def load_inputs(path: Path | str, model: Model) -> NDArray[np.int8]:
        """The array `x` of a file alone, as `load` reads it."""
        x, _ = load_windows(Path(path), model, None) if Path(path).is_dir() else _read(path, None)
        try:
            return _inputs(x, model)
        except DatasetError as error:
            raise DatasetError(f"{path}: {error.message}", hint=error.hint) from error

    @classmethod
    def from_arrays(
        cls,
        x: NDArray[np.generic],
        y: NDArray[np.generic] | None,
        model: Model,
        loss: str = LOSSES[0],
    ) -> Dataset:
        """Quantise arrays as `load` does."""
        inputs = _inputs(x, model)
        shape, exit_ = inputs.shape[1:], model.tensors[model.exit]
        outputs = prod(exit_.shape[1:])
        if y is None:
            if outputs != prod(shape):
                raise DatasetError(
                    f"without labels a model gives its input back, but this one makes {outputs} "
                    f"values of {prod(shape)}",
                    hint=_WRITE,
                )
            return cls(inputs, inputs)
        return cls(inputs, _LABELS[loss](y, len(x), outputs))


def _read(
    path: Path | str, loss: str | None
) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    """The array `x`, and `y`, which may lack without a loss or when the loss needs none."""
    labelled = loss is not None and loss not in _UNLABELLED
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DatasetError(f"{path} is an .npy file", hint=_WRITE)
        with archive:
            for name in ("x", "y") if labelled else ("x",):
                if name not in archive:
                    raise _lacking(path, archive.files, name, loss)
            return archive["x"], archive.get("y")
    except DatasetError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(
            f"there is no data file {path}", hint="name an .npz file with arrays x and y"
        ) from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever NumPy, zipfile and zlib make of damaged bytes
        raise DatasetError(f"{path} is no usable .npz file", hint=_WRITE) from error


def _lacking(path: Path | str, found: Sequence[str], name: str, loss: str | None) -> DatasetError:
    arrays = ", ".join(clean(each, 40) for each in found[:10]) or "nothing"
    if name == "x":
        return DatasetError(f"{path} holds {arrays}, but no x, the samples", hint=_WRITE)
    return DatasetError(
        f"{path} holds {arrays}, but no y, the labels that {loss} compares with",
        hint=f"{_WRITE}; an autoencoder needs no y: --loss mean_squared_error",
    )


def _inputs(x: NDArray[np.generic], model: Model) -> NDArray[np.int8]:
    entry = model.tensors[model.entry]
    shape = entry.shape[1:]
    if x.ndim == 0 or len(x) == 0:
        raise DatasetError("there are no samples", hint=_WRITE)
    given = x.shape[1:]
    # Values that fit in number alone may be in another order, and then they are noise.
    if _without_ones(given) != _without_ones(shape) and given != (prod(shape),):
        hint = ""
        if sorted(_without_ones(given)) == sorted(_without_ones(shape)):
            hint = "x.transpose(...) puts the axes into the model's order"
        elif prod(given) == prod(shape):
            hint = (
                "x.transpose(...) puts axes into the model's order; if the values are in it "
                "already, x.reshape(len(x), -1)"
            )
        raise DatasetError(
            f"the samples have shape {x.shape}, the model takes (N, {str(shape)[1:]}", hint=hint
        )
    return _quantise(x.reshape(len(x), *shape), entry.scale, entry.zero_point)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _class_numbers(y: NDArray[np.generic], count: int, classes: int) -> NDArray[np.int64]:
    if y.shape != (count,) or not np.issubdtype(y.dtype, np.integer):
        raise DatasetError(
            f"the labels are {y.dtype}{y.shape}, not one class number for each of the "
            f"{count} samples",
            hint="y.astype(int) makes numbers of floats, y.argmax(axis=1) of one-hot rows; for "
            "several labels a sample there is --loss sigmoid_cross_entropy",
        )
    labels = y.astype(np.int64)
    if labels.min() < 0 or labels.max() >= classes:
        raise DatasetError(
            f"labels run from {labels.min()} to {labels.max()}, the model has {classes} classes"
        )
    return labels


def _label_sets(y: NDArray[np.generic], count: int, outputs: int) -> NDArray[np.uint8]:
    if y.shape != (count, outputs) or not np.isin(y, (0, 1)).all():
        raise DatasetError(
            f"the labels are {y.dtype}{y.shape}, not {outputs} zeros and ones for each of the "
            f"{count} samples",
            hint="numpy.eye(classes)[y] makes rows of class numbers; for one class a sample "
            "there is --loss softmax_cross_entropy",
        )
    return y.astype(np.uint8)


def _real_values(y: NDArray[np.generic], count: int, outputs: int) -> NDArray[np.float32]:
    if len(y.shape) == 0 or len(y) != count or prod(y.shape[1:]) != outputs:
        raise DatasetError(
            f"the labels have shape {y.shape}, the model makes {outputs} values for each of the "
            f"{count} samples"
        )
    if not np.issubdtype(y.dtype, np.number):
        raise DatasetError("the labels are no numbers")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        labels = y.reshape(count, outputs).astype(np.float32)
    if not np.isfinite(labels).all():
        raise DatasetError("the labels are no finite numbers in float32")
    return labels


_LABELS: dict[str, Callable[[NDArray[Any], int, int], NDArray[Any]]] = {
    "softmax_cross_entropy": _class_numbers,
    "sigmoid_cross_entropy": _label_sets,
    "mean_squared_error": _real_values,
}
# Losses that a model can be trained with on its inputs alone.
_UNLABELLED = ("mean_squared_error",)


def _quantise(x: NDArray[np.generic], scale: float, zero_point: int) -> NDArray[np.int8]:
    if x.dtype == np.int8:
        return np.ascontiguousarray(x, np.int8)
    if x.dtype == np.uint8:
        # Only 256 values: a table, so that a large set never stands in memory as floats.
        levels = np.arange(256) * _RAW_SCALE
        return _to_int8(np.rint(levels / scale) + zero_point)[x]
    if not np.issubdtype(x.dtype, np.floating):
        raise DatasetError(f"samples of type {x.dtype} are not supported: use uint8, int8 or float")
    quantised = np.empty(x.shape, np.int8)
    rows = max(_BLOCK * len(x) // max(x.size, 1), 1)
    outside = 0
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        if not np.isfinite(block).all():
            raise DatasetError("the samples hold NaN or infinite values")
        steps = np.rint(block.astype(np.float64) / scale) + zero_point
        outside += int(np.count_nonzero((steps < -129) | (steps > 128)))
        quantised[start : start + rows] = _to_int8(steps)
    clipped = outside / x.size
    if clipped > _MOST_CLIPPED:
        low, high = ((limit - zero_point) * scale for limit in (-128, 127))
        raise DatasetError(
            f"{clipped:.0%} of the values lie outside the model's input range: they run from "
            f"{x.min():g} to {x.max():g}, it takes {low:g} to {high:g}",
            hint="scale them as for the training of the model; raw bytes belong in uint8",
        )
    return quantised


def _to_int8(steps: NDArray[np.float64]) -> NDArray[np.int8]:
    return np.clip(steps, -128, 127).astype(np.int8)
