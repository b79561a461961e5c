# SPDX-License-Identifier: Apache-2.0
"""The systemd units as they are installed, by systemd-analyze in a root of their own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedlearn_qemu.layer.install import Target, install
from fedlearn_qemu.layer.recipe import LAYER, find

RECIPES = (
    "fedlearn",
    "fedlearn-aggregator",
    "fedlearn-appliance",
    "fedlearn-provision",
    "fedlearn-conf",
    "fedlearn-aggregator-conf",
)
UNITS = Path("usr/lib/systemd/system")
HOST_UNITS = Path("/") / UNITS
# Ten times what `systemd-analyze security` prints: 2.0 and lower for all that hears the network.
EXPOSURE = {
    "fedlearn.service": 20,
    "fedlearn-collect.service": 15,
    "fedlearn-aggregator.service": 20,
    "fedlearn-aggregator-init.service": 20,
    "fedlearn-provision.service": 20,
    "fedlearn-grow-data.service": 20,
    # sethostname() asks for CAP_SYS_ADMIN and the host's own UTS namespace.
    "fedlearn-hostname.service": 21,
}

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or not HOST_UNITS.is_dir(),
    reason="units are not checked: systemd-analyze is missing (apt install systemd)",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with this machine's units, and ours as the recipes install them."""
    work = tmp_path_factory.mktemp("units")
    shutil.copytree(HOST_UNITS, work / "root" / UNITS, symlinks=True)
    for name in RECIPES:
        image = install(find(name), Target("wrynose"), work / name, wheel=False)
        shutil.copytree(image, work / "root", symlinks=True, dirs_exist_ok=True)
    # systemd's own, which is looked for where the board has it.
    growfs = work / "root/usr/lib/systemd/systemd-growfs"
    growfs.write_text("#!/bin/sh\n", encoding="utf-8")
    growfs.chmod(0o755)
    return work / "root"


def ours(root: Path) -> list[str]:
    return sorted(path.name for path in (root / UNITS).glob("*fedlearn*") if path.is_file())


def services(root: Path) -> list[str]:
    return [name for name in ours(root) if name.endswith(".service")]


def verify(root: Path, *units: str) -> tuple[int, str]:
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            "--recursive-errors=no",
            f"--root={root}",
            *units,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def exposure(root: Path, unit: str, threshold: int) -> tuple[int, str]:
    options = ("--offline=yes", "--no-pager", f"--threshold={threshold}", f"--root={root}")
    done = subprocess.run(
        ["systemd-analyze", "security", *options, unit],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()[-1]


def test_all_units_are_installed(root: Path) -> None:
    in_layer = {path.name for path in LAYER.rglob("*.service")} | {"fedlearn.slice"}
    assert in_layer <= set(ours(root))
    # The mounts are made of a template.
    assert {name for name in ours(root) if name.endswith(".mount")} == {
        "var-lib-fedlearn.mount",
        "var-lib-fedlearn\\x2daggregator.mount",
    }


def test_units_are_right(root: Path) -> None:
    code, text = verify(root, *ours(root))
    assert (code, text) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("WatchdogSec=60", "WatchdogSec=sixty", "sixty"),
        ("OOMPolicy=continue", "OOMPolice=continue", "OOMPolice"),
        ("/usr/bin/fedlearn agent", "/usr/bin/fedlern agent", "fedlern"),
        ("@system-service", "@system-servise", "@system-servise"),
    ],
)
def test_a_wrong_unit_would_be_found(
    root: Path, tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    """Control."""
    copy = tmp_path / "root"
    shutil.copytree(root, copy, symlinks=True)
    unit = copy / UNITS / "fedlearn.service"
    text = unit.read_text("utf-8")
    assert old in text
    unit.write_text(text.replace(old, new), encoding="utf-8")
    _, found = verify(copy, "fedlearn.service")
    assert complaint in found


def test_services_are_fenced_in(root: Path) -> None:
    assert set(services(root)) == set(EXPOSURE)
    for unit, threshold in EXPOSURE.items():
        code, line = exposure(root, unit, threshold)
        print(line)
        assert code == 0, line


def test_an_open_service_would_be_found(root: Path, tmp_path: Path) -> None:
    """Control: without its list of system calls and capabilities it is above the threshold."""
    copy = tmp_path / "root"
    shutil.copytree(root, copy, symlinks=True)
    unit = copy / UNITS / "fedlearn.service"
    text = re.sub(r"^(SystemCall|Capability|Protect).*\n", "", unit.read_text("utf-8"), flags=re.M)
    unit.write_text(text, encoding="utf-8")
    code, _ = exposure(copy, "fedlearn.service", EXPOSURE["fedlearn.service"])
    assert code != 0


def test_enabled_services_have_an_install_section(root: Path) -> None:
    for name in RECIPES:
        recipe = find(name)
        for variable in recipe.values:
            if variable.startswith("SYSTEMD_SERVICE:"):
                for unit in recipe.words(variable):
                    assert "[Install]" in (root / UNITS / unit).read_text("utf-8"), unit


def test_the_agent_notifies_and_is_watched(root: Path) -> None:
    text = (root / UNITS / "fedlearn.service").read_text("utf-8")
    assert "Type=notify" in text
    assert "WatchdogSec=" in text
    assert "Slice=fedlearn.slice" in text


def test_who_has_the_network_has_no_sensor(root: Path) -> None:
    agent, collect = (
        settings((root / UNITS / f"{name}.service").read_text("utf-8"))
        for name in ("fedlearn", "fedlearn-collect")
    )
    assert ("PrivateDevices", "yes") in agent
    assert ("PrivateNetwork", "yes") in collect
    assert [value for key, value in collect if key == "RestrictAddressFamilies"] == ["AF_UNIX"]
    assert {value for key, value in collect if key == "DeviceAllow"} == {
        f"char-{name} rw" for name in ("ttyACM", "ttyAMA", "ttyS", "ttyUSB")
    }
    # Their drivers are there before it starts: what is unknown then stays forbidden.
    assert ("Wants", "modprobe@cdc_acm.service modprobe@usbserial.service") in collect
    # Control: neither is true of the other.
    assert ("PrivateDevices", "yes") not in collect
    assert ("PrivateNetwork", "yes") not in agent


def settings(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^([A-Za-z]+)=(.*)$", text, re.M)


def test_the_limits_of_the_slice_are_read(root: Path, tmp_path: Path) -> None:
    """The drop-in is fedlearn-conf's; a wrong value in it is found, so it is looked at."""
    limits = UNITS / "fedlearn.slice.d/limits.conf"
    assert "MemoryMax=50%" in (root / limits).read_text("utf-8")
    copy = tmp_path / "root"
    shutil.copytree(root, copy, symlinks=True)
    (copy / limits).write_text("[Slice]\nCPUQuota=much\n", encoding="utf-8")
    _, found = verify(copy, "fedlearn.slice")
    assert "much" in found


def test_links_lead_to_units(root: Path) -> None:
    """Units that are wanted by a link of their own, without systemctl enable."""
    links = [path for path in (root / UNITS).glob("*.wants/*") if "fedlearn" in path.name]
    assert links
    assert [path for path in links if not path.exists()] == []
