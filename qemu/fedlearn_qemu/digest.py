# SPDX-License-Identifier: Apache-2.0
"""A digest of files and words: the name under which what was made of them is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_IGNORED = ("__pycache__", ".egg-info", ".mypy_cache")


def files_in(path: Path) -> list[Path]:
    """The files of a folder that count, in their order; a file is its own."""
    if path.is_file():
        return [path]
    found = sorted(each for each in path.rglob("*") if each.is_file())
    return [each for each in found if not any(word in str(each) for word in _IGNORED)]


def digest(paths: Iterable[Path], words: Iterable[str] = ()) -> str:
    """Twelve hex digits that change with any name, mode bit or byte of the files, or any word."""
    total = hashlib.sha256()
    for word in words:
        total.update(f"word {len(word)} {word}\n".encode())
    for path in paths:
        for each in files_in(path):
            name = each.relative_to(path.parent)
            runs = each.stat().st_mode & 0o100
            total.update(f"file {name} {runs} {each.stat().st_size}\n".encode())
            total.update(each.read_bytes())
    return total.hexdigest()[:12]
