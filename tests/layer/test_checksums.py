# SPDX-License-Identifier: Apache-2.0
"""Every remote source has a checksum in its recipe, and it is that of the file which pip gets."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlearn_qemu.layer import registry
from fedlearn_qemu.layer.install import Target, source_of
from fedlearn_qemu.layer.recipe import PYTHONS, Recipe, find, read, recipes
from fedlearn_qemu.layer.registry import MissingError, Source, fetch, sha256

MACHINES = ("aarch64", "x86_64")


def remote() -> list[Recipe]:
    return [recipe for recipe in map(read, recipes()) if "pypi" in recipe.inherits]


def stated(recipe: Recipe) -> dict[Source, str]:
    """Checksums by what they are of: a flag `cp314-aarch64.sha256sum` is that of a wheel."""
    found = {}
    for (variable, flag), value in recipe.flags.items():
        if variable == "SRC_URI" and flag.endswith("sha256sum"):
            tag, _, machine = flag.rpartition(".")[0].partition("-")
            source = source_of(recipe, Target("wrynose"))
            python = f"{tag[2]}.{tag[3:]}" if tag else ""
            found[Source(source.package, source.version, python, machine)] = value
    return found


ALL = [(source, value) for recipe in remote() for source, value in stated(recipe).items()]


def wrong(path: Path, value: str) -> bool:
    return sha256(path) != value


@pytest.mark.slow
@pytest.mark.parametrize(("source", "value"), ALL, ids=[source.pattern for source, _ in ALL])
def test_a_checksum_is_that_of_the_file(
    source: Source, value: str, fetched: Callable[[Source], Path]
) -> None:
    path = fetched(source)
    assert not wrong(path, value)
    assert wrong(path, value[::-1])  # control


@pytest.mark.parametrize(("release", "machine"), list(itertools.product(PYTHONS, MACHINES)))
def test_every_release_and_machine_has_its_wheel(release: str, machine: str) -> None:
    recipe = find("python3-ai-edge-litert")
    assert source_of(recipe, Target(release, machine)) in stated(recipe)


def test_every_recipe_with_a_remote_source_states_one() -> None:
    assert {recipe.name for recipe in remote()} == {"python3-ai-edge-litert", "python3-zeroconf"}
    for recipe in map(read, recipes()):
        assert bool(stated(recipe)) == ("pypi" in recipe.inherits), recipe.name
        # No address that would have no checksum here.
        assert all(word.startswith("file://") for word in recipe.words("SRC_URI")), recipe.name


def test_checksums_are_sha256() -> None:
    assert all(len(value) == 64 and int(value, 16) for _, value in ALL)


def test_no_address_is_spelled_out() -> None:
    """It is the pypi class that knows it, so that a mirror serves them too."""
    for recipe in remote():
        lines = recipe.path.read_text("utf-8").splitlines()
        assert [each for each in lines if "://" in each and "HOMEPAGE" not in each] == [
            each for each in lines if "LIC_FILES_CHKSUM" in each
        ]


def answer(*codes: int) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A pip that returns these codes one after the other."""
    left = list(codes)
    return lambda *_: subprocess.CompletedProcess([], left.pop(0), "", "no such version")


def test_a_version_that_is_gone_is_no_reason_to_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: only a registry that does not answer at all is."""
    monkeypatch.setattr(registry, "pip", answer(1, 0))
    with pytest.raises(MissingError, match="no such version"):
        fetch(Source("zeroconf", "0.0.0"), tmp_path)
    monkeypatch.setattr(registry, "pip", answer(1, 1))
    with pytest.raises(registry.UnreachableError):
        fetch(Source("zeroconf", "0.0.0"), tmp_path)
