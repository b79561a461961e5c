# SPDX-License-Identifier: Apache-2.0
"""Which package of OE-core's python3 holds a module that our code imports.

The table is ours and as long as our list of imports. Where OE-core is at hand (`OE=`), a test
compares it with the python3-manifest.json of the release.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# python3-core, and what is built into the interpreter.
CORE = {
    *("__future__", "abc", "argparse", "collections", "contextlib", "dataclasses", "enum", "errno"),
    *("functools", "heapq", "importlib", "ipaddress", "itertools", "math", "operator", "os"),
    *("pathlib", "platform", "re", "select", "signal", "stat", "struct", "subprocess", "sys"),
    *("threading", "time", "types", "typing", "urllib", "warnings", "zlib"),
}
SPLITS = {
    "asyncio": "asyncio",
    "concurrent.futures": "asyncio",
    "ctypes": "ctypes",
    "datetime": "datetime",
    "difflib": "difflib",
    "fcntl": "fcntl",
    "hashlib": "crypt",
    "http": "netclient",
    "json": "json",
    "logging": "logging",
    "queue": "threading",
    "random": "math",
    "resource": "resource",
    "secrets": "netclient",
    "socket": "io",
    "sqlite3": "sqlite3",
    "ssl": "io",
    "statistics": "statistics",
    "tomllib": "tomllib",
    "tracemalloc": "misc",
}
# What the manifest does not name is in here, if it has a file at all.
REST = "misc"
# Recipes of the other packages that our code imports.
THIRD_PARTY = {
    "aiohttp": "python3-aiohttp",
    "cbor2": "python3-cbor2",
    "ifaddr": "python3-ifaddr",
    "numpy": "python3-numpy",
    "serial": "python3-pyserial",
    "zeroconf": "python3-zeroconf",
}


def imports(folders: Iterable[Path]) -> set[str]:
    """Every module that the files import from outside of themselves, also within functions.

    Not what stands under TYPE_CHECKING, nor what is imported only if it is there.
    """
    found: set[str] = set()
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*.py")):
            visitor = Visitor()
            visitor.visit(ast.parse(path.read_bytes()))
            found |= visitor.found
    return found


class Visitor(ast.NodeVisitor):
    """Collects absolute imports."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0 and node.module:
            self.found.add(node.module)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            for each in node.orelse:
                self.visit(each)
        else:
            self.generic_visit(node)

    def visit_Try(self, node: ast.Try) -> None:
        caught = " ".join(ast.unparse(each.type) for each in node.handlers if each.type)
        if "ImportError" in caught or "ModuleNotFoundError" in caught:
            for each in [*node.orelse, *node.finalbody]:
                self.visit(each)
        else:
            self.generic_visit(node)


def loaded(package: str) -> set[str]:
    """Modules of the standard library that a fresh interpreter has once it has imported all of
    `package`: the imports that really happen, one level below ours too.
    """
    program = (
        "import sys, pkgutil, importlib\n"
        f"top = importlib.import_module({package!r})\n"
        "for each in pkgutil.walk_packages(top.__path__, top.__name__ + '.'):\n"
        "    if not each.name.endswith('__main__'):\n"
        "        importlib.import_module(each.name)\n"
        "print(*sorted(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return {name for name in done.stdout.split() if is_standard(name)}


def is_standard(module: str) -> bool:
    """Whether a module is of the standard library."""
    return module.partition(".")[0] in sys.stdlib_module_names


def is_built_in(module: str) -> bool:
    """Whether a module has no file of its own: built into the interpreter, or an alias."""
    return module in sys.builtin_module_names or module in ("os.path", "typing.io", "typing.re")


def split(module: str) -> str:
    """The package of a module by our table, without its python3-."""
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        if name in SPLITS:
            return SPLITS[name]
        if name in CORE:
            return "core"
    raise KeyError(f"{module}: tests/layer/splits.py does not know its package; add it there")


class Manifest:
    """OE-core's python3-manifest.json of a release."""

    def __init__(self, core: Path) -> None:
        path = core / "meta/recipes-devtools/python/python3/python3-manifest.json"
        lines = path.read_text("utf-8").splitlines()
        self.packages = json.loads("\n".join(each for each in lines if not each.startswith("#")))

    def holders(self, module: str) -> set[str]:
        """The packages that name a module; core for one that has no file, REST for all others."""
        name = module.replace(".", "/")
        tries = [f"{name}.py", f"{name}/__init__.py", f"lib-dynload/{module}.X.so"]
        while name:
            tries.append(name)
            name = name.rpartition("/")[0]
        paths = ["${libdir}/python${PYTHON_MAJMIN}/" + each for each in tries]
        found = {
            str(package)
            for package, entry in self.packages.items()
            for pattern in entry["files"]
            if any(fnmatch.fnmatchcase(path, pattern.rstrip("/")) for path in paths)
        }
        return found or {"core" if is_built_in(module) else REST}

    def closure(self, splits: Iterable[str]) -> set[str]:
        """These packages and all that they depend on."""
        found: set[str] = set()
        todo = {"core", *splits}
        while todo:
            package = todo.pop()
            if package not in found and package in self.packages:
                found.add(package)
                todo |= set(self.packages[package]["rdepends"])
        return found
