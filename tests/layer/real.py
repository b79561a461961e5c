# SPDX-License-Identifier: Apache-2.0
"""The layer in the real BitBake: `make layer-check OE=<folder>`.

The folder has the checkouts bitbake, openembedded-core, meta-openembedded and meta-raspberrypi of
one release, or one such folder a release. For each: every recipe with yocto-check-layer's QA class,
the whole dependency chain of the images for three boards, and yocto-check-layer itself. The
settings are those of the kas files. Nothing is built or downloaded; logs are in build/layer-check/.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.layer import kasfiles
from tests.layer.kasfiles import ROOT, Build

LAYER = ROOT / "meta-fedlearn"
LOGS = ROOT / "build/layer-check"
CHECKOUTS = ("bitbake", "openembedded-core", "meta-openembedded", "meta-raspberrypi")
BOARDS = ("qemuarm64", "raspberrypi4-64", "raspberrypi5")
IMAGES = ("fedlearn-image", "fedlearn-image-dev", "fedlearn-aggregator-image")
STEPS = ("recipes", "images", "layer")
# A first parse of some thousand recipes takes minutes on two cores; yocto-check-layer does six.
LIMIT_S = {"recipes": 900, "images": 3600, "layer": 4 * 3600}
TICK_S = 30
# Ours are all of them; others' are shown and do not count.
OURS = re.compile(r"fedlearn|zeroconf|litert|QA Issue", re.I)


class RealError(Exception):
    """What the person who called can mend; the text says how."""


@dataclass(frozen=True)
class Release:
    """The checkouts of one release."""

    name: str
    path: Path


@dataclass(frozen=True)
class Result:
    """What became of one command."""

    release: str
    step: str
    name: str
    passed: bool
    seconds: float
    log: str
    problems: tuple[str, ...]


def release_of(path: Path) -> Release:
    """The release of a folder of checkouts, by what OE-core says that it is."""
    missing = [name for name in CHECKOUTS if not (path / name).is_dir()]
    if missing:
        raise RealError(f"{path} lacks the checkouts {', '.join(missing)}")
    conf = (path / "openembedded-core/meta/conf/layer.conf").read_text("utf-8")
    names = re.search(r'^LAYERSERIES_CORENAMES\s*=\s*"([^"]+)"', conf, re.M)
    known = [name for name in (names[1].split() if names else []) if name in kasfiles.releases()]
    if not known:
        raise RealError(
            f"{path}/openembedded-core is of no release that the layer supports "
            f"({', '.join(kasfiles.releases())})"
        )
    return Release(known[0], path)


def releases_in(folder: Path) -> list[Release]:
    """One release if the folder is its checkouts, else one for each sub-folder that is."""
    folder = folder.resolve()
    if (folder / "openembedded-core").is_dir():
        return [release_of(folder)]
    below = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [release_of(path) for path in below if (path / "openembedded-core").is_dir()]
    if not found:
        raise RealError(f"{folder} has no openembedded-core, and no sub-folder of it has")
    return found


def user(uid: int, name: str | None) -> str | None:
    """Who runs BitBake, which refuses root: None is this user."""
    if uid != 0:
        return None
    if not name:
        raise RealError(
            "BitBake does not run as root; name an ordinary user: "
            "make layer-check OE=... OE_USER=<user>"
        )
    try:
        if pwd.getpwnam(name).pw_uid == 0:
            raise RealError(f"OE_USER={name} is root as well")
    except KeyError:
        raise RealError(
            f"OE_USER={name} does not exist here; useradd --create-home {name}"
        ) from None
    return name


def configure(build: Build, release: Release, folder: Path, layers: Iterable[Path]) -> None:
    """A build folder as kas would make it, but without network."""
    (folder / "conf").mkdir(parents=True, exist_ok=True)
    (folder / "conf/bblayers.conf").write_text(
        'BBPATH = "${TOPDIR}"\nBBFILES ?= ""\n'
        f'BBLAYERS = "{" ".join(str(layer) for layer in layers)}"\n',
        "utf-8",
    )
    (folder / "conf/local.conf").write_text(
        f'MACHINE ?= "{build.machine}"\nDISTRO ?= "{build.distro}"\n{build.local_conf}\n'
        # Only metadata is looked at: whatever wants the network is a fault.
        'BB_NO_NETWORK = "1"\nCONNECTIVITY_CHECK_URIS = ""\nBB_SERVER_TIMEOUT = "0"\n'
        f'DL_DIR = "{folder}/downloads"\nSSTATE_DIR = "{folder}/sstate-cache"\n',
        "utf-8",
    )
    (folder / "release").write_text(release.name + "\n", "utf-8")


def environment(release: Release, folder: Path, **more: str) -> dict[str, str]:
    """The environment of oe-init-build-env, and nothing of this one."""
    oe = release.path
    return {
        "PATH": f"{oe}/bitbake/bin:{oe}/openembedded-core/scripts:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": f"{oe}/bitbake/lib",
        "BBPATH": str(folder),
        "BUILDDIR": str(folder),
        "HOME": str(folder),
        "LC_ALL": "en_US.UTF-8",
        "BB_ENV_PASSTHROUGH_ADDITIONS": "INHERIT",
        # The checkouts may belong to somebody else.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        **more,
    }


def problems(log: str) -> list[str]:
    """Lines of a log that tell a fault."""
    return [
        line
        for line in log.splitlines()
        if re.match(r"(ERROR|FAIL|WARNING|INFO: .*\.\.\. FAIL)\b", line)
        and (not line.startswith("WARNING") or OURS.search(line))
    ]


class Runner:
    """Runs commands in build folders of their own, and shows how far they are."""

    def __init__(self, as_user: str | None, logs: Path) -> None:
        self.as_user = as_user
        self.logs = logs
        self.results: list[Result] = []

    def own(self, folder: Path) -> None:
        """BitBake writes there."""
        if self.as_user:
            for path in (folder, folder / "conf", *(folder / "conf").iterdir()):
                shutil.chown(path, self.as_user)

    def run(
        self, step: str, name: str, release: Release, folder: Path, *command: str, **more: str
    ) -> Result:
        """Run a command; it passed if it returned 0 and its log tells no fault."""
        self.own(folder)
        log = self.logs / release.name / f"{step}-{name}.log"
        prefix = ["runuser", "-u", self.as_user, "--"] if self.as_user else []
        print(f"==> {release.name}: {step}: {name}", flush=True)
        start = time.monotonic()
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*prefix, *command],
                cwd=folder,
                env=environment(release, folder, **more),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            code = self.wait(process, log, start, LIMIT_S[step])
        text = log.read_text("utf-8", "replace")
        found = problems(text)
        if code != 0 and not found:
            found = [f"returned {code}: " + " | ".join(text.splitlines()[-3:])]
        seconds = round(time.monotonic() - start, 1)
        result = Result(
            release.name, step, name, code == 0 and not found, seconds, str(log), tuple(found)
        )
        print(f"    {'ok' if result.passed else 'FAILED'} ({seconds:.0f} s)", flush=True)
        for line in found[:10]:
            print(f"    {line}", flush=True)
        return result

    @staticmethod
    def wait(process: subprocess.Popen[bytes], log: Path, start: float, limit_s: float) -> int:
        """Wait for it, with a line now and then; one that hangs is ended."""
        while True:
            try:
                return process.wait(TICK_S)
            except subprocess.TimeoutExpired:
                elapsed_s = time.monotonic() - start
                lines = log.read_text("utf-8", "replace").splitlines() or [""]
                print(f"    {elapsed_s:.0f} s: {lines[-1][:80]}", flush=True)
                if elapsed_s > limit_s:
                    process.terminate()
                    process.wait()
                    return -1


def recipes() -> list[Path]:
    """Every recipe of the layer."""
    return sorted(LAYER.glob("recipes-*/*/*.bb"))


def control(folder: Path) -> Path:
    """A recipe that the QA class of both releases must refuse."""
    path = folder / "control_1.0.bb"
    path.write_text(
        'SUMMARY = "control"\nLICENSE = "CLOSED"\nINSANE_SKIP:${PN} = "installed-vs-shipped"\n',
        encoding="utf-8",
    )
    return path


def check_recipes(runner: Runner, release: Release) -> Iterator[Result]:
    """`bitbake -e -b` of each recipe, with the class that yocto-check-layer inherits."""
    build = kasfiles.load(BOARDS[0], release.name)
    folder = runner.logs / release.name / "recipes"
    configure(build, release, folder, build.layers(release.path))
    inherit = {"INHERIT": "yocto-check-layer"}
    bad = runner.run(
        "recipes",
        "control",
        release,
        folder,
        "bitbake",
        "-e",
        "-b",
        str(control(folder)),
        **inherit,
    )
    seen = any("installed-vs-shipped" in line for line in bad.problems)
    print(f"    which is what the control must do: {'yes' if seen else 'NO'}", flush=True)
    yield Result(
        release.name,
        "recipes",
        "control",
        seen,
        bad.seconds,
        bad.log,
        () if seen else ("a recipe that skips a required check was not refused",),
    )
    for recipe in recipes():
        yield runner.run(
            "recipes", recipe.stem, release, folder, "bitbake", "-e", "-b", str(recipe), **inherit
        )


def check_images(runner: Runner, release: Release, boards: Iterable[str]) -> Iterator[Result]:
    """`bitbake -g`: everything that the images need is there and can be built."""
    for board in boards:
        build = kasfiles.load(board, release.name)
        folder = runner.logs / release.name / board
        configure(build, release, folder, build.layers(release.path))
        yield runner.run("images", board, release, folder, "bitbake", "-g", *IMAGES)


def check_layer(runner: Runner, release: Release) -> Iterator[Result]:
    """yocto-check-layer, in a build that does not know the layer yet."""
    build = kasfiles.load(BOARDS[0], release.name)
    plain = Build(build.machine, build.distro, "", {}, "", ())
    folder = runner.logs / release.name / "layer"
    core, *others = [path for path in build.layers(release.path) if path != LAYER]
    configure(plain, release, folder, [core])
    yield runner.run(
        "layer",
        "yocto-check-layer",
        release,
        folder,
        "yocto-check-layer",
        "--no-auto",
        "--no-auto-dependency",
        str(LAYER),
        "--dependency",
        *map(str, others),
    )


def pinned(release: Release) -> Iterator[str]:
    """A line for each checkout: its commit, and whether it is the one that the kas files name."""
    repos = kasfiles.load(BOARDS[-1], release.name).repos
    for name in CHECKOUTS:
        head = subprocess.run(
            ["git", "-c", "safe.directory=*", "rev-parse", "HEAD"],
            cwd=release.path / name,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        same = "as pinned" if head == repos[name].get("commit") else "NOT the pinned commit"
        yield f"    {name} {head[:12] or 'of no known commit'}, {same}"


def check(runner: Runner, release: Release, steps: Iterable[str], boards: Iterable[str]) -> None:
    """All steps for a release."""
    (runner.logs / release.name).mkdir(parents=True, exist_ok=True)
    print(f"==> {release.name}", *pinned(release), sep="\n", flush=True)
    if "recipes" in steps:
        runner.results += check_recipes(runner, release)
    if "images" in steps:
        runner.results += check_images(runner, release, boards)
    if "layer" in steps:
        runner.results += check_layer(runner, release)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser(prog="python -m tests.layer.real", description=__doc__)
    words.add_argument("oe", nargs="?", type=Path, help="folder of checkouts")
    words.add_argument("--user", default=os.environ.get("OE_USER"), help="who runs BitBake")
    words.add_argument("--release", action="append", choices=kasfiles.releases())
    words.add_argument("--step", action="append", choices=STEPS)
    words.add_argument("--board", action="append", choices=kasfiles.boards())
    words.add_argument("--logs", type=Path, default=LOGS)
    return words


def main(arguments: list[str]) -> int:
    """Return 0 if all passed, 1 if something failed, 2 if it could not begin."""
    given = parser().parse_args(arguments)
    if given.oe is None:
        print("layer-check: SKIPPED the real BitBake: give OE=<folder of checkouts>")
        return 0
    try:
        runner = Runner(user(os.geteuid(), given.user), given.logs.resolve())
        found = [
            each
            for each in releases_in(given.oe)
            if not given.release or each.name in given.release
        ]
    except RealError as error:
        print(f"layer-check: {error}", file=sys.stderr)
        return 2
    for release in found:
        check(runner, release, given.step or STEPS, given.board or BOARDS)
    failed = [result for result in runner.results if not result.passed]
    (runner.logs / "report.json").write_text(
        json.dumps([asdict(result) for result in runner.results], indent=1) + "\n", "utf-8"
    )
    for result in failed:
        print(f"FAILED {result.release}: {result.step}: {result.name}, see {result.log}")
    print(f"layer-check: {len(runner.results) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed or not runner.results else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
