# SPDX-License-Identifier: Apache-2.0
"""`fedlearn-qemu` as a person calls it: two devices, their rounds, and its files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn_qemu.image import Image
from fedlearn_qemu.source import source_root
from tests.qemu.conftest import DEPLOY


@pytest.mark.qemu
@pytest.mark.slow
def test_two_devices_federate(image: Image, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fedlearn_qemu", "--json", "--rounds", "2"),
            *("--samples", "400", "--out", str(out), "--image", DEPLOY),
        ],
        capture_output=True,
        text=True,
        cwd=source_root(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((out / "report.json").read_text("utf-8"))
    assert {each["image"] for each in report["devices"]} == set(report["image_mb"]) == {image.name}
    assert [each["updates"] for each in report["devices"]] == [2, 2]
    assert [each["state"] for each in report["rounds"]] == ["closed", "closed"]
    assert 0 < report["first_update_s"] < report["wall_s"]
    for each in report["devices"]:
        assert "delivered" in (out / each["name"] / "agent.log").read_text("utf-8")
        assert (out / each["name"] / "console.log").stat().st_size
