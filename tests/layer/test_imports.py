# SPDX-License-Identifier: Apache-2.0
"""What the code imports is in the packages that its recipe depends on.

Forgotten splits of python3 are the most common fault of Python recipes: it works on every machine
but the device.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zeroconf

from fedlearn_qemu.layer import registry
from fedlearn_qemu.layer.install import Target, source_of
from fedlearn_qemu.layer.recipe import LAYER, ROOT, find, read
from tests.layer import splits
from tests.layer.real import Release
from tests.layer.splits import CORE, SPLITS, THIRD_PARTY, Manifest, imports, is_standard

OURS = ("fedlearn", "fedlearn_aggregator")
# The runtime is chosen by a variable; either module is it.
RUNTIMES = ("ai_edge_litert", "tflite_runtime")
CODE = {
    "fedlearn": [ROOT / "client"],
    "fedlearn-aggregator": [ROOT / "aggregator"],
    "python3-zeroconf": [Path(zeroconf.__file__).parent],
}


def packages_of(name: str) -> set[str]:
    """RDEPENDS of a package, and of the client where it needs that."""
    wanted = find(name).rdepends(name)
    if "fedlearn" in wanted:
        wanted |= find("fedlearn").rdepends("fedlearn")
    return wanted


def modules_of(name: str) -> set[str]:
    """What its code imports from elsewhere."""
    own = (*OURS, name.removeprefix("python3-"))
    return {each for each in imports(CODE[name]) if each.partition(".")[0] not in own}


def lacking(modules: set[str], rdepends: set[str]) -> list[str]:
    """Modules that no package of RDEPENDS has, by our table."""
    found = []
    for module in modules:
        if is_standard(module):
            package = "python3-" + splits.split(module)
        else:
            package = THIRD_PARTY[module.partition(".")[0]]
        if package not in rdepends | {"python3-core"}:
            found.append(f"{module} is in {package}")
    return sorted(found)


@pytest.mark.parametrize("name", sorted(CODE))
def test_rdepends_name_what_the_code_imports(name: str) -> None:
    modules = modules_of(name)
    assert len(modules) > 20
    assert lacking(modules, packages_of(name)) == []


def test_every_single_rdepends_is_missed() -> None:
    """Control, for each that the code imports from directly."""
    modules, rdepends = modules_of("fedlearn"), packages_of("fedlearn")
    direct = {"python3-" + splits.split(each) for each in modules if is_standard(each)}
    direct |= {THIRD_PARTY[each.partition(".")[0]] for each in modules if not is_standard(each)}
    assert len(direct) > 12
    for package in direct - {"python3-core"}:
        assert lacking(modules, rdepends - {package}), package


def test_the_runtime_is_in_rdepends() -> None:
    text = (ROOT / "client/fedlearn/runtime.py").read_text("utf-8")
    assert all(module in text for module in RUNTIMES)
    assert "${FEDLEARN_TFLITE_RUNTIME}" in find("fedlearn").values["RDEPENDS:${PN}"]


def test_imports_within_functions_are_seen(tmp_path: Path) -> None:
    """Control of the reader: lazy ones count, those for types or for what may be missing do not."""
    source = tmp_path / "x.py"
    source.write_text(
        "import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import c\n"
        "def f():\n    from d import e\ntry:\n    import g\nexcept ImportError:\n    pass\n"
        "try:\n    import h\nexcept OSError:\n    pass\nfrom . import i\n",
        encoding="utf-8",
    )
    assert imports([source]) == {"a.b", "typing", "d", "h"}


def test_an_unknown_module_must_be_added_to_the_table() -> None:
    """Control."""
    with pytest.raises(KeyError, match=r"splits.py does not know"):
        splits.split("turtle")


@pytest.mark.parametrize("release", ["wrynose", "scarthgap"])
def test_the_runtime_imports_what_its_recipe_names(
    release: str, fetched: Callable[[registry.Source], Path], tmp_path: Path
) -> None:
    """In the files that the recipe installs, out of the wheel."""
    recipe = find("python3-ai-edge-litert")
    with zipfile.ZipFile(fetched(source_of(recipe, Target(release)))) as wheel:
        wheel.extractall(tmp_path)
    names = [name for name in recipe.words("LITERT_FILES") if name.endswith(".py")]
    modules = imports([tmp_path / "ai_edge_litert" / name for name in names])
    # What only the other layouts of the same source import.
    others = ("ai_edge_litert", "tensorflow", "tflite")
    modules = {each for each in modules if each.partition(".")[0] not in others}
    assert {"numpy", "ctypes"} <= modules
    assert lacking(modules, recipe.rdepends(recipe.name)) == []
    assert "ctypes is in python3-ctypes" in lacking(modules, {"python3-numpy"})


def test_the_table_is_that_of_oe_core(oe: list[Release]) -> None:
    for release in oe:
        manifest = Manifest(release.path / "openembedded-core")
        for module in CORE:
            assert "core" in manifest.holders(module), f"{release.name}: {module}"
        for module, package in SPLITS.items():
            assert package in manifest.holders(module), f"{release.name}: {module}"


def test_all_that_is_loaded_is_installed(oe: list[Release]) -> None:
    """Not what we import alone, but all that a process of the client has loaded in the end."""
    modules = {each for each in splits.loaded("fedlearn") if not each.startswith("_")}
    assert {"tracemalloc", "email.parser", "ssl"} <= modules
    named = {each.removeprefix("python3-") for each in packages_of("fedlearn")}
    for release in oe:
        manifest = Manifest(release.path / "openembedded-core")

        def missing(splits_named: set[str], manifest: Manifest = manifest) -> list[str]:
            there = manifest.closure(splits_named) | (splits_named & {splits.REST})
            return sorted(each for each in modules if not manifest.holders(each) & there)

        assert missing(named) == [], release.name
        assert "tomllib" in missing(named - {"tomllib"})
        assert "tracemalloc" in missing(named - {splits.REST})


def test_documentation_is_asked_for_by_no_package(oe: list[Release]) -> None:
    """python3-misc asks for pydoc, and NumPy's recipe for both."""
    removed = read(LAYER / "recipes-devtools/python/python3-slim.inc").words(
        "RDEPENDS:${PN}-misc:remove:class-target", PN="python3"
    )
    for release in oe:
        (path,) = (release.path / "openembedded-core/meta/recipes-devtools/python").glob(
            "python3_3.*.bb"
        )
        text = path.read_text("utf-8")
        named = re.search(r'^RDEPENDS:\$\{PN\}-misc \+= "(.*?)"', text, re.M | re.S)
        assert named, release.name
        words = {each.replace("${PN}", "python3") for each in named[1].split()} - {"\\"}
        assert {"python3-pydoc", "python3-email"} <= words  # control
        assert set(removed) <= words
        assert "python3-pydoc" not in words - set(removed)
