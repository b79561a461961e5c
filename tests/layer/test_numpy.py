# SPDX-License-Identifier: Apache-2.0
"""What python3-numpy-slim.inc takes out of NumPy is found, before and after 2.0, and is not missed.

scarthgap has NumPy 1.26, whose core is `numpy.core`; wrynose has 2.x, where it is `numpy._core`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn_qemu.layer.recipe import LAYER, ROOT, read

SLIM = LAYER / "recipes-devtools/python/python3-numpy-slim.inc"
HERE = Path(sys.executable)
OTHER = ROOT / ".venv-other/bin/python"
NEEDED = "NumPy 2 beside NumPy 1 is missing: .venv-other, which `make test` makes with Python 3.11"
PYTHONS = [
    pytest.param(HERE, id="this"),
    pytest.param(OTHER, id="other", marks=pytest.mark.skipif(not OTHER.exists(), reason=NEEDED)),
]
# Modules in C that only NumPy's tests load.
OF_TESTS = ("*_tests.*.so", "_simd.*.so", "lapack_lite.*.so")
FOLDERS = ("distutils", "f2py", "testing", "tests", "linalg/tests")
IMPORT_ALL = """
import importlib, pkgutil, fedlearn, numpy
for each in pkgutil.walk_packages(fedlearn.__path__, "fedlearn."):
    if not each.name.endswith("__main__"):
        importlib.import_module(each.name)
numpy.linalg.norm(numpy.ones((2, 2))), numpy.random.default_rng(1).random(2)
print(numpy.__file__)
"""


def site_of(python: Path) -> Path:
    """The site-packages with its NumPy."""
    code = "import json, numpy; print(json.dumps(numpy.__file__))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return Path(json.loads(done.stdout)).parents[1]


def taken_out(site: Path) -> set[Path]:
    """Files of the packages -tests and -dev."""
    slim = read(SLIM)
    found: set[Path] = set()
    for variable in ("FILES:${PN}-tests", "FILES:${PN}-dev"):
        for pattern in slim.words(variable, PYTHON_SITEPACKAGES_DIR="@"):
            if pattern.startswith("@/"):
                for path in site.glob(pattern.removeprefix("@/")):
                    found |= {path} if path.is_file() else {*path.rglob("*")}
    return {path for path in found if path.is_file()}


def copy_without(site: Path, left_out: set[Path], to: Path) -> None:
    """NumPy, and the libraries that its wheel brings, less some files."""
    for folder in site.glob("numpy*"):
        for path in folder.rglob("*"):
            if path.is_file() and path not in left_out:
                new = to / path.relative_to(site)
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, new)


def run(python: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Import all of the client with the NumPy of a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), "-c", IMPORT_ALL]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("python", PYTHONS)
def test_modules_of_the_tests_are_in_the_package_of_the_tests(python: Path) -> None:
    site = site_of(python)
    of_tests = {path for pattern in OF_TESTS for path in (site / "numpy").rglob(pattern)}
    # NumPy 1 imports this one itself, to document it.
    of_tests -= {*(site / "numpy/core").glob("_multiarray_tests.*.so")}
    assert len(of_tests) >= 5
    folders = [site / "numpy" / each for each in FOLDERS if (site / "numpy" / each).is_dir()]
    assert folders
    of_tests |= {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert of_tests <= taken_out(site)


def test_both_numpys_are_tested() -> None:
    """Else one half of the patterns would be of no consequence here."""
    if not OTHER.exists():
        pytest.skip(NEEDED)
    found = {next(site_of(each).glob("numpy-*.dist-info")).name[6] for each in (HERE, OTHER)}
    assert found == {"1", "2"}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_client_is_imported_without_them(python: Path, tmp_path: Path) -> None:
    site = site_of(python)
    copy_without(site, taken_out(site), tmp_path)
    done = run(python, tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_what_is_needed_is_missed(tmp_path: Path) -> None:
    """Control: it was the copy that ran."""
    site = site_of(HERE)
    needed = {*(site / "numpy/linalg").glob("_umath_linalg.*.so")}
    assert needed
    copy_without(site, taken_out(site) | needed, tmp_path)
    done = run(HERE, tmp_path)
    assert done.returncode != 0
    assert "_umath_linalg" in done.stderr
