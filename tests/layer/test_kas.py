# SPDX-License-Identifier: Apache-2.0
"""The kas files of recipes/: valid by kas's own schema, complete, and pinned."""

from __future__ import annotations

import itertools
import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from kas.kasusererror import KasUserError

from tests.layer.kasfiles import RECIPES, Build, boards, load, releases

IMAGES = {
    "": "fedlearn-image",
    "dev": "fedlearn-image-dev",
    "aggregator": "fedlearn-aggregator-image",
}
# Those that issue and README promise.
BOARDS = {
    "genericarm64",
    "qemuarm64",
    "qemux86-64",
    "raspberrypi0-2w-64",
    "raspberrypi3-64",
    "raspberrypi4-64",
    "raspberrypi5",
}


def unpinned(build: Build) -> list[str]:
    """Repositories that another day would be another commit."""
    return [
        name
        for name, repo in build.repos.items()
        if repo.get("url") and not re.fullmatch("[0-9a-f]{40}", str(repo.get("commit")))
    ]


def test_all_boards_are_there() -> None:
    assert set(boards()) == BOARDS
    assert set(releases()) == {"scarthgap", "wrynose"}


@pytest.mark.parametrize(
    ("board", "release", "image"), list(itertools.product(sorted(BOARDS), releases(), IMAGES))
)
def test_every_combination_is_valid_and_pinned(
    board: str, release: str, image: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build = load(board, release, image)
    assert caplog.text == ""  # kas warns of what a newer one refuses
    assert build.machine == board
    assert build.target == IMAGES[image]
    assert unpinned(build) == []
    assert {"bitbake", "openembedded-core", "meta-openembedded"} <= set(build.repos)
    assert ("meta-raspberrypi" in build.repos) == board.startswith("raspberrypi")
    assert 'INIT_MANAGER = "systemd"' in build.local_conf
    assert re.search(r'^DISTRO_FEATURES:append = " fedlearn"$', build.local_conf, re.M)
    # Repositories without an address are this one.
    assert [name for name, repo in build.repos.items() if not repo.get("url")] == ["fedlearn"]
    branches = {
        repo["branch"]
        for name, repo in build.repos.items()
        if repo.get("url") and name != "bitbake"
    }
    assert branches == {release}


def features(build: Build, name: str) -> set[str]:
    """The words of a variable of DISTRO_FEATURES in local.conf."""
    found = re.findall(rf'^{name}(?::append)? = "([^"]*)"', build.local_conf, re.M)
    return {word for words in found for word in words.split()}


@pytest.mark.parametrize("image", IMAGES)
def test_tests_of_other_packages_are_built_for_developers_alone(image: str) -> None:
    """By default wrynose builds all recipes' tests, and with them hundreds of recipes more."""
    for release in releases():
        build = load("qemuarm64", release, image)
        default = features(build, "DISTRO_FEATURES_DEFAULT")
        assert "ptest" not in default
        assert default or "ptest" in features(build, "DISTRO_FEATURES_OPTED_OUT")
        assert ("ptest" in features(build, "DISTRO_FEATURES")) == (image == "dev")


def shared(recipes: Path) -> set[str]:
    """Repositories that both releases take at one commit.

    A board's file includes wrynose's pins, so those count where another release forgets one.
    """
    pins = [
        {
            (name, repo["commit"])
            for board in boards(recipes)
            for name, repo in load(board, release, recipes=recipes).repos.items()
            if "commit" in repo
        }
        for release in releases(recipes)
    ]
    return {name for name, _ in set.intersection(*pins)}


def test_releases_share_no_commit() -> None:
    assert shared(RECIPES) == set()


def test_every_included_file_is_used() -> None:
    used = {
        path
        for board, release, image in itertools.product(boards(), releases(), IMAGES)
        for path in load(board, release, image).files
    }
    there = {path for path in RECIPES.rglob("*.yml") if ".lock" not in path.name}
    assert used == there


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A repository with the recipes alone, to break them."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copytree(RECIPES, tmp_path / "recipes")
    return tmp_path / "recipes"


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_copy_is_whole(copied: Path) -> None:
    assert unpinned(load("raspberrypi5", "wrynose", recipes=copied)) == []


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("qemuarm64.yml", "machine: qemuarm64", "machin: qemuarm64"),
        ("qemuarm64.yml", "include/common.yml", "include/comon.yml"),
        ("include/common.yml", "local_conf_header:", "local_conf_headers:"),
        ("include/release-wrynose.yml", "version: 14", "version: 1400"),
        ("include/release-wrynose.yml", "commit: ", "commit: x"),
    ],
)
def test_a_wrong_file_would_be_found(copied: Path, file: str, old: str, new: str) -> None:
    """Control."""
    replace(copied / file, old, new)
    try:
        build = load("qemuarm64", "wrynose", recipes=copied)
    except KasUserError:
        return
    assert unpinned(build)


def test_a_missing_pin_would_be_found(copied: Path) -> None:
    """Control."""
    replace(copied / "include/release-scarthgap.yml", "meta-openembedded:", "meta-openembeddet:")
    assert shared(copied) == {"meta-openembedded"}
    replace(copied / "include/release-wrynose.yml", "meta-openembedded:", "meta-openembeddet:")
    assert unpinned(load("qemuarm64", "wrynose", recipes=copied)) == ["meta-openembedded"]
