# SPDX-License-Identifier: Apache-2.0
"""What is around the real BitBake; and with OE= that itself, which takes an hour or more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedlearn_qemu.layer.recipe import LAYER
from tests.layer import kasfiles, real
from tests.layer.real import RealError, Release


def checkouts(folder: Path, corename: str = "wrynose") -> Path:
    for name in real.CHECKOUTS:
        (folder / name).mkdir(parents=True)
    conf = folder / "openembedded-core/meta/conf/layer.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(f'LAYERSERIES_CORENAMES = "{corename}"\n', encoding="utf-8")
    return folder


def test_one_release_or_a_folder_of_them(tmp_path: Path) -> None:
    one = checkouts(tmp_path / "a")
    two = checkouts(tmp_path / "b", "scarthgap")
    (tmp_path / "notes").mkdir()
    assert real.releases_in(one) == [Release("wrynose", one)]
    assert real.releases_in(tmp_path) == [Release("wrynose", one), Release("scarthgap", two)]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RealError, match="no openembedded-core"):
        real.releases_in(tmp_path)
    with pytest.raises(RealError, match="no openembedded-core"):
        real.releases_in(tmp_path / "missing")
    checkouts(tmp_path, "kirkstone")
    with pytest.raises(RealError, match="no release that the layer supports"):
        real.releases_in(tmp_path)
    (tmp_path / "bitbake").rmdir()
    with pytest.raises(RealError, match="lacks the checkouts bitbake"):
        real.releases_in(tmp_path)


def test_root_needs_another_user() -> None:
    assert real.user(1000, None) is None
    assert real.user(1000, "daemon") is None
    assert real.user(0, "daemon") == "daemon"
    for name, reason in ((None, "OE_USER=<user>"), ("root", "is root"), ("nobody-x", "useradd")):
        with pytest.raises(RealError, match=reason):
            real.user(0, name)


def test_the_settings_are_those_of_the_kas_files(tmp_path: Path) -> None:
    release = Release("scarthgap", tmp_path / "oe")
    build = kasfiles.load("raspberrypi5", "scarthgap")
    layers = build.layers(release.path)
    real.configure(build, release, tmp_path / "build", layers)
    local = (tmp_path / "build/conf/local.conf").read_text("utf-8")
    assert 'MACHINE ?= "raspberrypi5"' in local
    assert 'DISTRO_FEATURES:append = " fedlearn"' in local
    assert "DISTRO_FEATURES_DEFAULT" in local  # of the release's own file
    assert 'BB_NO_NETWORK = "1"' in local
    names = [str(layer.relative_to(release.path)) for layer in layers if layer != LAYER]
    assert sorted(names) == [
        "meta-openembedded/meta-oe",
        "meta-openembedded/meta-python",
        "meta-raspberrypi",
        "openembedded-core/meta",
    ]
    assert LAYER in layers
    assert str(LAYER) in (tmp_path / "build/conf/bblayers.conf").read_text("utf-8")


def test_faults_in_a_log_are_told() -> None:
    """Control: a line of ours counts as a warning too; others' warnings do not."""
    log = (
        "NOTE: fine\nERROR: broken\nWARNING: somebody else's\nWARNING: fedlearn lacks x\n"
        "INFO: meta-fedlearn ... FAIL\nINFO: meta-fedlearn ... PASS\n"
    )
    assert real.problems(log) == [
        "ERROR: broken",
        "WARNING: fedlearn lacks x",
        "INFO: meta-fedlearn ... FAIL",
    ]


def runner_of(tmp_path: Path) -> tuple[real.Runner, Release, Path]:
    release = Release("wrynose", checkouts(tmp_path / "oe"))
    build = kasfiles.load("qemuarm64", "wrynose")
    folder = tmp_path / "logs/wrynose/build"
    real.configure(build, release, folder, [LAYER])
    return real.Runner(None, tmp_path / "logs"), release, folder


@pytest.mark.parametrize(
    ("command", "passed"), [("true", True), ("echo ERROR: x", False), ("exit 3", False)]
)
def test_a_command_passes_on_its_code_and_its_log(
    tmp_path: Path, command: str, passed: bool
) -> None:
    runner, release, folder = runner_of(tmp_path)
    result = runner.run("recipes", "x", release, folder, "sh", "-c", command)
    assert result.passed is passed
    assert bool(result.problems) is not passed
    assert Path(result.log).is_file()


def test_a_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "TICK_S", 0.1)
    monkeypatch.setitem(real.LIMIT_S, "recipes", 0)
    runner, release, folder = runner_of(tmp_path)
    result = runner.run("recipes", "x", release, folder, "sleep", "60")
    assert not result.passed
    assert result.seconds < 30


def test_without_checkouts_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert real.main([]) == 0
    assert "SKIPPED the real BitBake" in capsys.readouterr().out


def test_nothing_to_check_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    checkouts(tmp_path / "oe")
    words = [str(tmp_path / "oe"), "--logs", str(tmp_path / "logs"), "--release", "scarthgap"]
    (tmp_path / "logs").mkdir()
    assert real.main(words) == 1
    assert real.main([str(tmp_path / "none")]) == 2


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_real_bitbake(oe: list[Release], capfd: pytest.CaptureFixture[str]) -> None:
    assert oe
    with capfd.disabled():
        code = real.main([os.environ["OE"]])
    assert code == 0, f"returned {code}; what it printed is above, logs are in {real.LOGS}"
