# SPDX-License-Identifier: Apache-2.0
"""What the layer adds to a root file system, by its recipes' own do_install."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlearn_qemu.layer.install import Target, install, matches, part
from fedlearn_qemu.layer.recipe import PYTHONS, find
from fedlearn_qemu.layer.registry import UnreachableError
from tests.layer.size import JSON, Size, sizes, table, write

# The root file system may have 90 MB, of which Python, NumPy and systemd take most.
MOST_BYTES = 22_000_000


@pytest.fixture(scope="module")
def measured() -> list[Size]:
    try:
        return [each for release in PYTHONS for each in sizes(release)]
    except UnreachableError as error:
        pytest.skip(f"sizes are not measured: {error}")


@pytest.mark.slow
def test_the_packages_are_small(measured: list[Size], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{table(measured)}")
    write(measured, JSON)
    for release in PYTHONS:
        mine = [each for each in measured if each.release == release]
        assert sum(each.blocks_bytes for each in mine) < MOST_BYTES
        assert all(each.files for each in mine), "a package without a file"


@pytest.mark.slow
def test_the_aggregator_and_the_demo_are_not_on_a_device(tmp_path: Path) -> None:
    parted: dict[str, set[str]] = {}
    for name in ("fedlearn", "fedlearn-aggregator"):
        recipe, target = find(name), Target("wrynose")
        try:
            image = install(recipe, target, tmp_path / name)
        except UnreachableError as error:
            pytest.skip(str(error))
        for package, paths in part(recipe, target, image).items():
            parted[package] = {str(path.relative_to(image)) for path in paths}
    assert "usr/bin/fedlearn" in parted["fedlearn"]
    assert "usr/bin/fedlearn-aggregator" in parted["fedlearn-aggregator"]
    assert not [each for paths in parted.values() for each in paths if "demo" in each]
    assert not [each for each in parted["fedlearn"] if "fedlearn_aggregator" in each]
    both = parted["fedlearn"] & parted["fedlearn-aggregator"]
    assert not both, "two packages with the same file cannot be installed together"
    assert parted["fedlearn-service"] == {
        "usr/lib/systemd/system/fedlearn.service",
        "usr/lib/systemd/system/fedlearn-collect.service",
        "usr/lib/systemd/system/fedlearn.slice",
    }


def test_files_are_matched_as_bitbake_does() -> None:
    """Control: a pattern, a folder with what is in it, and neither."""
    assert matches(Path("usr/bin/x"), ["/usr/bin/*"])
    assert matches(Path("usr/lib/a/b/c"), ["/usr/lib/a"])
    assert not matches(Path("usr/lib/ab"), ["/usr/lib/a"])
