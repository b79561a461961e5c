# SPDX-License-Identifier: Apache-2.0
"""Power cuts that lose what the disk had not written; `make bench-qemu` does twenty."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlearn_qemu.image import Image
from fedlearn_qemu.torture import power_cuts

CUTS, SEED = 3, 20261126


@pytest.mark.qemu
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_power_cuts_tear_no_model_and_lose_no_update(image: Image, tmp_path: Path) -> None:
    cuts = power_cuts(image, tmp_path / "cuts", CUTS, SEED, print)
    assert cuts.power_cuts == CUTS
    assert (cuts.torn_models, cuts.lost_updates, cuts.doubled_updates) == (0, 0, 0)
