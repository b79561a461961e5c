# SPDX-License-Identifier: Apache-2.0
"""The demo empties its own folder and nobody else's."""

from pathlib import Path

import pytest

from fedlearn.errors import ConfigError, StorageError
from fedlearn_demo.workspace import Workspace


def test_new_folder_is_made_and_an_old_one_emptied(tmp_path: Path) -> None:
    out = tmp_path / "build" / "demo"
    with Workspace(out) as workspace:
        (workspace.device("device-01") / "state").mkdir(parents=True)
        workspace.report.write_text("{}")
    with Workspace(out) as workspace:
        assert [entry.name for entry in out.iterdir()] == [".fedlearn-demo"]


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "aggregator").mkdir()
    (tmp_path / "aggregator" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not the demo's"), Workspace(tmp_path):
        pass
    assert (tmp_path / "aggregator" / "thesis.tex").exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    out = tmp_path / "out"
    with Workspace(out):
        (out / "device-01").symlink_to(tmp_path / "precious")
    with Workspace(out):
        assert not (out / "device-01").is_symlink()
    assert (tmp_path / "precious" / "file").exists()


def test_one_demo_at_a_time(tmp_path: Path) -> None:
    with (
        Workspace(tmp_path / "out"),
        pytest.raises(ConfigError, match="another demo"),
        Workspace(tmp_path / "out"),
    ):
        pass
    with Workspace(tmp_path / "out"):  # free again
        pass


def test_unusable_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot use"), Workspace(tmp_path / "file" / "out"):
        pass
