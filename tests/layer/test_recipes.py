# SPDX-License-Identifier: Apache-2.0
"""The layer's files: oelint-adv, licence headers, and what yocto-check-layer reads in them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn_qemu.layer.recipe import LAYER, ROOT, read
from tests.layer.waivers import NOT_RUN, WAIVERS, Waiver
from tests.lint.test_linters import tool, tracked

METADATA = (".bb", ".bbappend", ".bbclass", ".inc", "layer.conf")
LICENCED = (*METADATA, ".wks", ".cfg", ".conf", ".service", ".slice", ".in", ".yml")
SCRIPT = re.compile(rb"#!\s*/(?:usr/)?bin/(?:env )?(?:ba|da)?sh\b")


def layer_files(*endings: str) -> list[Path]:
    return [path for path in tracked(*endings) if LAYER in path.parents]


def oelint(*paths: Path) -> list[tuple[str, str, str]]:
    """Findings as rule, file and text."""
    form = "{id}\t{path}\t{line}: {msg}"
    done = subprocess.run(
        [
            tool("oelint-adv"),
            *("--quiet", "--release=wrynose", "--exit-zero", "--messageformat", form),
            *(f"--suppress={rule}" for rule in NOT_RUN),
            *map(str, paths),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OELINT_SKIP_CONFIG": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    found = [tuple(line.split("\t", 2)) for line in lines if line.count("\t") >= 2]
    return [(rule, Path(path).name, text) for rule, path, text in found]


def unwaived(findings: list[tuple[str, str, str]]) -> list[str]:
    return [
        f"{file}:{text} [{rule}]"
        for rule, file, text in findings
        if not any(waiver.covers(rule, file) for waiver in WAIVERS)
    ]


@pytest.fixture(scope="module")
def findings() -> list[tuple[str, str, str]]:
    return oelint(*layer_files(*METADATA))


@pytest.mark.slow
def test_oelint_finds_nothing_without_a_reason(findings: list[tuple[str, str, str]]) -> None:
    assert findings, "not even what is waived was found: did oelint-adv run?"
    assert unwaived(findings) == []


@pytest.mark.slow
def test_every_waiver_is_needed(findings: list[tuple[str, str, str]]) -> None:
    def needed(waiver: Waiver) -> bool:
        return any(waiver.covers(rule, file) for rule, file, _ in findings)

    assert [waiver for waiver in WAIVERS if not needed(waiver)] == []


def test_a_fault_of_a_recipe_would_be_found(tmp_path: Path) -> None:
    """Control."""
    bad = tmp_path / "bad_1.0.bb"
    bad.write_text('SUMMARY = "x"\nDESCRIPTION = "y"\nRDEPENDS_${PN} = "z"\n', encoding="utf-8")
    found = "\n".join(unwaived(oelint(bad)))
    assert "oelint.var.mandatoryvar.LICENSE" in found
    assert "RDEPENDS_" in found


def has_licence(path: Path) -> bool:
    head = path.read_text("utf-8").splitlines()[:3]
    return sum("SPDX-License-Identifier: " in line for line in head) == 1


def scripts() -> list[Path]:
    """All shell scripts of the project; those for a device have no ending."""
    return [path for path in tracked("") if SCRIPT.match(path.open("rb").readline())]


def test_every_file_names_its_licence() -> None:
    files = [*layer_files(*LICENCED), *tracked(".yml"), *scripts()]
    assert len(files) > 40
    assert [str(path) for path in files if not has_licence(path)] == []


def test_what_stands_in_the_layer_is_mit() -> None:
    """COPYING.MIT is what its README promises for the metadata."""
    files = layer_files(*METADATA)
    assert [str(path) for path in files if "Identifier: MIT" not in path.read_text("utf-8")] == []


def test_a_missing_licence_would_be_found(tmp_path: Path) -> None:
    """Control."""
    path = tmp_path / "x.bb"
    path.write_text('SUMMARY = "x"\n', encoding="utf-8")
    assert not has_licence(path)


def test_all_shell_scripts_are_clean() -> None:
    found = scripts()
    assert {path.name for path in found} >= {"run", "fedlearn-provision", "fedlearn-grow-data"}
    done = subprocess.run(
        [tool("shellcheck"), *map(str, found)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["fedlearn-grow-data", "fedlearn-hostname", "fedlearn-provision"])
def test_scripts_of_a_device_stop_at_the_first_error(name: str) -> None:
    (path,) = [path for path in scripts() if path.name == name]
    assert re.search(r"^set -eu$", path.read_text("utf-8"), re.M)


def readme_faults(text: str) -> list[str]:
    """What yocto-check-layer asks of a README, that of wrynose, which asks for most."""
    wanted = {
        "a maintainer": "maintainer",
        "how to send patches": "patch",
        "its dependencies": "## dependencies",
    }
    found = [what for what, word in wanted.items() if word not in text.lower()]
    if not re.search(r"[^@]+@[^@]+", text) and not re.search("README", text, re.I):
        found.append("an e-mail address")
    return found


def test_the_readme_has_what_the_layer_index_wants() -> None:
    assert readme_faults((LAYER / "README.md").read_text("utf-8")) == []
    assert (LAYER / "SECURITY.md").stat().st_size > 0
    assert (LAYER / "COPYING.MIT").is_file()


def test_an_empty_readme_would_be_found() -> None:
    """Control."""
    assert len(readme_faults("# meta-x\n")) == 4


def test_the_layer_supports_the_releases_that_have_kas_files() -> None:
    conf = (LAYER / "conf/layer.conf").read_text("utf-8")
    compat = re.search(r'^LAYERSERIES_COMPAT_fedlearn = "([^"]+)"$', conf, re.M)
    assert compat
    files = (ROOT / "recipes/include").glob("release-*.yml")
    assert set(compat[1].split()) == {path.stem.removeprefix("release-") for path in files}
    depends = re.search(r'^LAYERDEPENDS_fedlearn = "([^"]+)"$', conf, re.M)
    assert depends
    assert set(depends[1].split()) == {"core", "openembedded-layer", "meta-python"}


def test_the_version_is_that_of_the_client() -> None:
    text = (ROOT / "client/fedlearn/version.py").read_text("utf-8")
    version = re.search(r'VERSION = "([^"]+)"', text)
    assert version
    for name in ("fedlearn", "fedlearn-aggregator"):
        assert (LAYER / f"recipes-fedlearn/fedlearn/{name}_{version[1]}.bb").is_file()


def test_every_append_waits_for_the_distro_feature() -> None:
    """Adding the layer alone must not change a signature."""
    for path in layer_files(".bbappend"):
        for line in path.read_text("utf-8").splitlines():
            inert = not line or line.startswith(("#", "FILESEXTRAPATHS"))
            assert inert or "contains('DISTRO_FEATURES', 'fedlearn'" in line, f"{path}: {line}"


def test_every_recipe_of_ours_asks_for_the_distro_feature() -> None:
    for path in layer_files(".bb"):
        recipe = read(path)
        if path.name == "fedlearn-image-dev.bb":
            continue  # it requires fedlearn-image.bb
        assert "fedlearn" in recipe.words("REQUIRED_DISTRO_FEATURES"), path
        assert "features_check" in recipe.inherits, path


def test_patches_state_what_upstream_knows() -> None:
    for path in layer_files(".patch"):
        assert "Upstream-Status: " in path.read_text("utf-8"), path


def test_the_interpreter_of_the_tests_is_new_enough() -> None:
    """kas and oelint-adv run in it, and tarfile's filters are used."""
    assert sys.version_info >= (3, 11, 4)
