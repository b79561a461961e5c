# SPDX-License-Identifier: Apache-2.0
"""Recipes of the layer without BitBake: their variables, flags and shell functions.

As much of the language as our own recipes use. What the real parser makes of them is for
`tests.layer.real`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from fedlearn_qemu.source import source_root

ROOT = source_root()
LAYER = ROOT / "meta-fedlearn"

ASSIGNMENT = re.compile(
    r"^(?P<name>[A-Za-z0-9_:${}.-]+)(?P<flag>\[[^]]+\])?\s*"
    r"(?P<operator>\?\?=|\?=|:=|\+=|=\+|\.=|=)\s*\"(?P<value>.*)\"\s*$",
    re.S,
)
FUNCTION = re.compile(
    r"^(?P<name>[a-z_]+)(?P<append>:append)?\(\) \{\n(?P<body>.*?)^\}$", re.M | re.S
)

# bitbake.conf's folders, for a 64-bit target with a merged /usr.
FOLDERS = {
    "prefix": "/usr",
    "bindir": "/usr/bin",
    "sbindir": "/usr/sbin",
    "libdir": "/usr/lib",
    "libexecdir": "/usr/libexec",
    "nonarch_libdir": "/usr/lib",
    "sysconfdir": "/etc",
    "localstatedir": "/var",
    "systemd_system_unitdir": "/usr/lib/systemd/system",
    "systemd_unitdir": "/usr/lib/systemd",
}
# What the layer's two releases have.
PYTHONS = {"wrynose": "3.14", "scarthgap": "3.12"}


class RecipeError(Exception):
    """A recipe that says something which this module does not understand."""


@dataclass
class Recipe:
    """One recipe: `values` unexpanded, `flags` by variable and flag, `functions` by name."""

    path: Path
    values: dict[str, str] = field(default_factory=dict)
    flags: dict[tuple[str, str], str] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    inherits: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """PN."""
        return self.path.stem.partition("_")[0]

    @property
    def version(self) -> str:
        """PV."""
        return self.path.stem.partition("_")[2] or "1.0"

    def expand(self, text: str, **more: str) -> str:
        """Replace ${...} by the recipe's variables; `more` wins over them."""
        known = {
            **FOLDERS,
            "PN": self.name,
            "BPN": self.name,
            "PV": self.version,
            "BP": f"{self.name}-{self.version}",
            "THISDIR": str(self.path.parent),
            **self.values,
            **more,
        }
        for _ in range(20):
            new = re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", lambda m: known.get(m[1], m[0]), text)
            if new == text:
                return text
            text = new
        raise RecipeError(f"{self.path.name}: variables that name each other in {text[:80]}")

    def words(self, name: str, **more: str) -> list[str]:
        """A variable as the list that it is."""
        return self.expand(self.values.get(name, ""), **more).split()

    def packages(self) -> list[str]:
        """Packages by their order: the first one that matches a file gets it."""
        return [*self.words("PACKAGE_BEFORE_PN"), self.name]

    def rdepends(self, package: str) -> set[str]:
        """RDEPENDS of one package."""
        written = {self.expand(name): name for name in self.values}
        return set(self.words(written.get(f"RDEPENDS:{package}", "")))

    def local_files(self) -> dict[str, Path]:
        """The file:// entries of SRC_URI that are in the layer or its repository."""
        places = [self.path.parent / self.name, self.path.parent / "files", ROOT]
        found = {}
        for word in self.words("SRC_URI"):
            if not word.startswith("file://"):
                continue
            name = word.removeprefix("file://").partition(";")[0]
            paths = [place / name for place in places if (place / name).exists()]
            if not paths:
                raise RecipeError(f"{self.path.name}: {word} is nowhere")
            found[name] = paths[0]
        return found


def logical_lines(text: str) -> list[str]:
    """Lines without comments, those that end in a backslash joined."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1] + line
        elif line and not line.startswith("#"):
            lines.append(line)
    return lines


def read(path: Path) -> Recipe:
    """Read a recipe, with what it requires out of the layer."""
    recipe = Recipe(path)
    text = path.read_text("utf-8")
    for name in re.findall(r"^require (\S+)$", text, re.M):
        required = path.parent / name
        if required.is_file():
            text = required.read_text("utf-8") + text
    for found in FUNCTION.finditer(text):
        recipe.functions[found["name"]] = recipe.functions.get(found["name"], "") + found["body"]
    for line in logical_lines(FUNCTION.sub("", text)):
        if line.startswith("inherit "):
            recipe.inherits |= set(line.split()[1:])
        elif match := ASSIGNMENT.match(line):
            assign(recipe, match)
    return recipe


def assign(recipe: Recipe, match: re.Match[str]) -> None:
    """Apply one assignment."""
    name, operator, value = match["name"], match["operator"], match["value"]
    if match["flag"]:
        recipe.flags[name, match["flag"][1:-1]] = value
        return
    before = recipe.values.get(name)
    for ending in (":append", ":prepend"):
        if name.endswith(ending):
            name = name.removesuffix(ending)
            before = recipe.values.get(name, "")
            operator = ".=" if ending == ":append" else "=."
    if operator in ("?=", "??=") and before is not None:
        return
    joined = {
        "+=": f"{before or ''} {value}",
        "=+": f"{value} {before or ''}",
        ".=": f"{before or ''}{value}",
        "=.": f"{value}{before or ''}",
    }
    recipe.values[name] = joined.get(operator, value)


def recipes() -> list[Path]:
    """Every recipe of the layer."""
    return sorted(LAYER.glob("recipes-*/*/*.bb"))


def find(name: str) -> Recipe:
    """The recipe of a name."""
    for path in recipes():
        if path.stem.partition("_")[0] == name:
            return read(path)
    raise RecipeError(f"the layer has no recipe {name}")
