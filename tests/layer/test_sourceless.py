# SPDX-License-Identifier: Apache-2.0
"""fedlearn-image has the bytecode of Python's modules alone, and they run."""

from __future__ import annotations

import compileall
import subprocess
import sys
from pathlib import Path

from fedlearn_qemu.layer.install import shell
from fedlearn_qemu.layer.recipe import FOLDERS, LAYER, read

IMAGES = LAYER / "recipes-fedlearn/images"
FUNCTION = "fedlearn_sourceless_python"
MODULE = 'def f(x):\n    """Words."""\n    return 1 / x\n'


def root_with_python(path: Path) -> Path:
    """A package of three modules: two with bytecode (one optimized as well), one without."""
    package = path / "usr/lib/python3.99/site-packages/package"
    package.mkdir(parents=True)
    for name in ("__init__.py", "plain.py", "script.py"):
        (package / name).write_text(MODULE, encoding="utf-8")
    (package / "data.txt").write_text("kept", encoding="utf-8")
    compileall.compile_dir(package, quiet=2)
    compileall.compile_file(package / "plain.py", quiet=2, optimize=1)
    (bytecode,) = package.glob("__pycache__/script.*")
    bytecode.unlink()
    return package


def run(package: Path, code: str) -> subprocess.CompletedProcess[str]:
    at = f"import sys; sys.path.insert(0, {str(package.parent)!r}); import package.plain as plain; "
    return subprocess.run(
        [sys.executable, "-I", "-c", at + code], capture_output=True, text=True, check=False
    )


def test_modules_are_loaded_from_their_bytecode(tmp_path: Path) -> None:
    package = root_with_python(tmp_path / "root")
    image = read(IMAGES / "fedlearn-image.bb")
    known = {**FOLDERS, "IMAGE_ROOTFS": str(tmp_path / "root"), "S": str(tmp_path)}
    shell(image, FUNCTION, known)
    # What has no bytecode keeps its source.
    left = {str(each.relative_to(package)) for each in package.rglob("*")}
    assert left == {"__init__.pyc", "plain.pyc", "script.py", "data.txt"}
    done = run(package, "print(plain.__file__, plain.f(2), plain.f.__doc__)")
    assert done.stdout.split() == [str(package / "plain.pyc"), "0.5", "Words."]
    failed = run(package, "plain.f(0)")
    assert f'{package}/plain.py", line 3, in f' in failed.stderr


def test_a_module_without_either_is_missed(tmp_path: Path) -> None:
    """Control: it was the bytecode that ran."""
    package = root_with_python(tmp_path / "root")
    (package / "plain.py").unlink()
    assert "No module named 'package.plain'" in run(package, "pass").stderr


def test_the_developers_image_keeps_the_sources() -> None:
    text = (IMAGES / "fedlearn-image-dev.bb").read_text("utf-8")
    assert f'ROOTFS_POSTPROCESS_COMMAND:remove = "{FUNCTION}"' in text
