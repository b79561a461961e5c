# SPDX-License-Identifier: Apache-2.0
"""The ring as a data set: the same int8 as an npz file with the same samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn.collect.grid import Grid
from fedlearn.collect.intervals import Interval, write_intervals
from fedlearn.collect.ring import RingWriter
from fedlearn.collect.settings import RingConfig
from fedlearn.collect.windows import Window
from fedlearn.dataset import Dataset
from fedlearn.errors import DatasetError, MissingFileError
from fedlearn.model import Model
from fedlearn_demo.digits import load_train
from tests import models
from tests.client.collect.harness import GRID, window


def digits_grid(model: Model) -> Grid:
    entry = model.tensors[model.entry]
    names = tuple(f"c{number}" for number in range(28))
    return Grid(names, 28, (0.0,) * 28, (255.0,) * 28, entry.scale, entry.zero_point)


def fill(path: Path, grid: Grid, windows: list[Window]) -> None:
    writer = RingWriter(path, grid, RingConfig(sync_s=3600))
    for each in windows:
        writer.add(each)
    writer.close()


def digits_windows(grid: Grid, count: int) -> list[Window]:
    x, y = load_train()
    rows = [b"".join(grid.quantise(row)[0] for row in each[:, :, 0].tolist()) for each in x[:count]]
    return [Window(data, int(y[n]), n * 100, n * 100 + 99) for n, data in enumerate(rows)]


def test_a_ring_is_what_an_npz_is(tmp_path: Path, digits: Model) -> None:
    x, y = load_train()
    np.savez(tmp_path / "digits.npz", x=x[:50], y=y[:50])
    wanted = Dataset.load(tmp_path / "digits.npz", digits)
    grid = digits_grid(digits)
    fill(tmp_path / "ring", grid, digits_windows(grid, 50))
    got = Dataset.load(tmp_path / "ring", digits)
    # Segments are by label, and the order of a data set is the seed's business.
    order, other = (np.lexsort((d.labels, *d.inputs.reshape(50, -1).T)) for d in (wanted, got))
    assert np.array_equal(wanted.inputs[order], got.inputs[other])
    assert np.array_equal(wanted.labels[order], got.labels[other])
    assert len(Dataset.load_inputs(tmp_path / "ring", digits)) == 50


def test_another_grid_is_requantised(tmp_path: Path, digits: Model) -> None:
    grid = replace(digits_grid(digits), step=1 / 127, zero_point=0)
    fill(tmp_path / "coarse", grid, digits_windows(grid, 20))
    fill(tmp_path / "fine", digits_grid(digits), digits_windows(digits_grid(digits), 20))
    coarse, fine = (Dataset.load_inputs(tmp_path / name, digits) for name in ("coarse", "fine"))
    apart = np.abs(coarse.astype(int) - fine)
    assert apart.max() <= 2
    assert apart.max() > 0  # control: it is not the same grid


def test_labels_that_came_afterwards(tmp_path: Path, digits: Model) -> None:
    grid = digits_grid(digits)
    windows = [replace(each, label=None) for each in digits_windows(grid, 30)]
    fill(tmp_path, grid, windows)
    with pytest.raises(DatasetError, match="none of them labelled"):
        Dataset.load(tmp_path, digits)
    intervals = [Interval(0, 1000, 3), Interval(500, 700, None), Interval(1050, 1200, 4)]
    write_intervals(tmp_path, intervals)
    labels = sorted(Dataset.load(tmp_path, digits).labels.tolist())
    assert labels == [3] * 8 + [4]  # the one that begins before 1050 is not wholly within


def test_an_autoencoder_learns_what_nobody_called_a_fault(tmp_path: Path) -> None:
    model = Model.parse(models.AUTOENCODER_PATH.read_bytes())
    entry = model.tensors[model.entry]
    grid = Grid(("g",), 64, (0.0,), (1.0,), entry.scale, entry.zero_point)
    windows = [window(n, label, grid) for n, label in enumerate([None, 0, 1, None, 2])]
    fill(tmp_path, grid, windows)
    dataset = Dataset.load(tmp_path, model, "mean_squared_error")
    assert dataset.inputs.shape == (3, 64)
    assert dataset.labels is dataset.inputs
    with pytest.raises(DatasetError, match="needs several labels"):
        Dataset.load(tmp_path, model, "sigmoid_cross_entropy")


def test_windows_of_another_shape_are_refused(tmp_path: Path, digits: Model) -> None:
    fill(tmp_path, GRID, [window(1, 0)])
    with pytest.raises(DatasetError, match="the model takes"):
        Dataset.load(tmp_path, digits)


def test_an_empty_folder_is_no_data(tmp_path: Path, digits: Model) -> None:
    with pytest.raises(MissingFileError):
        Dataset.load(tmp_path, digits)
