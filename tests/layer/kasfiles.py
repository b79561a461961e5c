# SPDX-License-Identifier: Apache-2.0
"""The kas files of recipes/, read by kas's own loader: no network, no checkouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kas.context import create_global_context
from kas.includehandler import IncludeHandler
from kas.kas import kas_get_argparser

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


@dataclass(frozen=True)
class Build:
    """What kas would build: the merged files of one board, release and kind of image."""

    machine: str
    distro: str
    target: str
    repos: dict[str, dict[str, Any]]
    local_conf: str
    files: tuple[Path, ...]

    def layers(self, checkouts: Path) -> list[Path]:
        """BBLAYERS, where `checkouts` has one folder a repository; ours is this one."""
        found = []
        for name, repo in self.repos.items():
            top = checkouts / name if repo.get("url") else ROOT
            for layer, state in (repo.get("layers") or {".": None}).items():
                if state not in ("disabled", "excluded", "n", "no", "0", "false"):
                    found.append(top / layer)
        return found


def boards(recipes: Path = RECIPES) -> list[str]:
    """All boards that have a file."""
    return sorted(path.stem for path in recipes.glob("*.yml") if ".lock" not in path.name)


def releases(recipes: Path = RECIPES) -> list[str]:
    """All releases that have a file."""
    return sorted(
        path.stem.removeprefix("release-") for path in recipes.glob("include/release-*.yml")
    )


def load(board: str, release: str, image: str = "", recipes: Path = RECIPES) -> Build:
    """Merge the files that `make image` names; kas checks each against its schema.

    Raises kas.kasusererror.KasUserError for a file that is missing or wrong.
    """
    files = [recipes / f"{board}.yml", recipes / f"include/release-{release}.yml"]
    if image:
        files.append(recipes / f"include/{image}.yml")
    # Its loader asks git for the top of the repository, with the environment of a command.
    create_global_context(kas_get_argparser().parse_args(["dump", str(files[0])]))
    handler = IncludeHandler([str(path) for path in files], use_lock=False)
    config, missing = handler.get_config()
    if missing:
        raise ValueError(f"{board}: includes out of other repositories: {missing}")
    branch = config.get("defaults", {}).get("repos", {})
    pins = config.get("overrides", {}).get("repos", {})
    repos = {
        name: {**(branch if (repo or {}).get("url") else {}), **(repo or {}), **pins.get(name, {})}
        for name, repo in config["repos"].items()
    }
    headers = config.get("local_conf_header", {})
    targets = config.get("target", "core-image-minimal")
    return Build(
        machine=config["machine"],
        distro=config.get("distro", "poky"),
        target=targets if isinstance(targets, str) else " ".join(targets),
        repos=repos,
        local_conf="\n".join(headers[name] for name in sorted(headers)),
        files=tuple(file.filename for file in handler.config_files),
    )
