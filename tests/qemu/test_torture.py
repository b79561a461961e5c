# SPDX-License-Identifier: Apache-2.0
"""A device that loses its power, or its memory, goes on as if nothing had been."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from fedlearn_demo.digits import MODEL_PATH, load_train
from fedlearn_qemu import device, lan
from fedlearn_qemu.aggregator import Task
from fedlearn_qemu.image import Image
from fedlearn_qemu.torture import Victim, examine
from tests.qemu.conftest import switched_on

CUTS = 3
SEED = int(os.environ.get("TORTURE_SEED", "1"))


@pytest.mark.qemu
@pytest.mark.slow
def test_nothing_is_torn_or_lost_by_power_cuts(image: Image, tmp_path: Path) -> None:
    x, y = load_train()
    data = tmp_path / "train.npz"
    np.savez(data, x=x[:300], y=y[:300])
    with (
        lan.Lan() as network,
        Victim(image, MODEL_PATH, data, tmp_path, network, seed=SEED) as victim,
    ):
        cuts = [victim.cut(print) for _ in range(CUTS)]
        assert [each.found.torn for each in cuts] == [()] * CUTS
        assert not any(each.update_lost for each in cuts)
        assert any(each.found.models for each in cuts), "no cut came after a download"
        # Provisioning and the growth of the partition survived the cut in their middle.
        guest = victim.machine.guest
        guest.check("cmp /boot/fedlearn/fedlearn.toml /etc/fedlearn/fedlearn.toml")
        assert int(guest.check("df -m /data").splitlines()[-1].split()[1]) > 100


@pytest.mark.qemu
@pytest.mark.slow
def test_a_training_that_takes_too_much_memory_is_made_smaller(
    image: Image, tmp_path: Path
) -> None:
    """The kernel kills the trainer, the agent lives, and what trains next fits."""
    samples = 2000
    task = Task("memory", MODEL_PATH, 1, tail="all", batch_size=samples, deadline_s=60)
    with switched_on(image, task, samples, tmp_path) as board:
        unit = device.UNIT
        pid = board.guest.check(f"systemctl show -P MainPID {unit}")
        # What is swapped into zram does not count as memory of the service.
        board.guest.check(f"systemctl set-property --runtime {unit} MemoryMax=80M MemorySwapMax=0")
        deadline = time.monotonic() + 400
        while not device.status(board.guest).memory_allowance_kib:
            assert time.monotonic() < deadline, board.guest.run(f"journalctl -u {unit}").output
            time.sleep(1)
        kills = board.guest.check(
            f"cat /sys/fs/cgroup$(systemctl show -P ControlGroup {unit})/memory.events"
        )
        assert "oom_kill 0\n" not in kills
        before = board.updates()
        while board.updates() <= before:
            assert time.monotonic() < deadline, board.guest.run(f"journalctl -u {unit}").output
            time.sleep(1)
        log = board.guest.check(f"journalctl -u {unit} --no-pager")
        assert "layers with weights train whole" in log, log
        assert board.guest.check(f"systemctl show -P MainPID {unit}") == pid
        assert board.guest.check(f"systemctl show -P NRestarts {unit}").strip() == "0"


def test_what_is_torn_is_seen(tmp_path: Path) -> None:
    """Control of the look at the disk: it needs no agent to find damage."""
    models = tmp_path / "models"
    models.mkdir()
    whole = models / "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855.tflite"
    whole.write_bytes(b"")
    assert examine(tmp_path).torn == ()
    assert len(examine(tmp_path).models) == 1
    whole.write_bytes(b"half")
    (tmp_path / "pending.cbor").write_bytes(b"half of an update")
    (tmp_path / "agent.json").write_bytes(b'{"task":')
    (tmp_path / "agent.json.corrupt").write_bytes(b"")
    torn = (whole.name, "pending.cbor", "agent.json", "agent.json.corrupt")
    assert examine(tmp_path).torn == torn
