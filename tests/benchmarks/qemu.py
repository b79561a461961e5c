# SPDX-License-Identifier: Apache-2.0
"""`make bench-qemu`: emulated devices in figures, and twenty power cuts of one.

A run of two devices gives times, memory and bytes; then a third trains in rounds without an end and
loses its power at random moments. The same training on it and on this machine is compared by the
SHA-256 of what it makes. Nothing here is a test: what it finds is written down.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np

from fedlearn import command
from fedlearn_demo.digits import MODEL_PATH, load_train
from fedlearn_qemu import device, equality, fleet, lan, tools
from fedlearn_qemu.cli import make_image
from fedlearn_qemu.image import Image
from fedlearn_qemu.settings import Settings
from fedlearn_qemu.torture import MODEL, Cut, Victim

OUT = Path("build/bench/qemu.json")
RUN = Path("build/bench/qemu")
CUTS = 20
TAILS = ("dense", "all")
SAMPLES = 300


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all of it and write the file."""
    parser = argparse.ArgumentParser(prog="bench-qemu", description=__doc__)
    parser.add_argument("--image", type=Path, help="BitBake's deploy folder")
    parser.add_argument("--cuts", type=int, default=CUTS, help=f"default: {CUTS}")
    parser.add_argument("--seed", type=int, default=0, help="of the cuts")
    options = parser.parse_args(arguments)
    command.stop_on_signals()
    return command.run("bench-qemu", lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    tools.require((*tools.BOOT, *tools.LAN, *tools.TORTURE))
    image = make_image(options.image, say)
    figures = _fleet(image, say) | _victim(image, options.cuts, options.seed, say)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    print(json.dumps({key: value for key, value in figures.items() if key != "cuts"}, indent=2))
    say(f"{OUT}")
    return 0


def _fleet(image: Image, say: fleet.Say) -> dict[str, object]:
    settings = Settings()
    report = fleet.run(settings, [image] * settings.devices, RUN / "fleet", say)
    return {
        "image": image.name,
        "image_mb": report.image_mb[image.name],
        "ready_s": median(each.ready_s for each in report.devices),
        "first_update_s": report.first_update_s,
        "agent_idle_rss_mb": max(each.agent_rss_mb for each in report.devices),
        "trainer_peak_mb": max(each.trainer_peak_mb for each in report.devices),
        "service_peak_mb": max(each.service_peak_mb for each in report.devices),
        "bytes_up_median": median(each for part in report.rounds for each in part.bytes_up),
    }


def _victim(image: Image, count: int, seed: int, say: fleet.Say) -> dict[str, object]:
    folder = RUN / "victim"
    fleet.empty(folder)
    data = folder / "train.npz"
    x, y = load_train()
    np.savez(data, x=x[:SAMPLES], y=y[:SAMPLES])
    cuts: list[Cut] = []
    with (
        lan.Lan() as network,
        Victim(image, MODEL_PATH, data, folder, network, seed=seed) as victim,
    ):
        for _ in range(count):
            cuts.append(victim.cut(say))
        guest = victim.machine.guest
        model = str(Path(device.DATA).with_name(MODEL))
        theirs = [equality.in_guest(guest, model, device.DATA, tail=tail) for tail in TAILS]
    new = folder / "trained.tflite"
    ours = [equality.here(MODEL_PATH, data, new, tail=tail) for tail in TAILS]
    return {
        "train_s": theirs[-1].train_s,
        "train_s_x86": ours[-1].train_s,
        "bit_equal": [each.sha256 for each in theirs] == [each.sha256 for each in ours],
        "power_cuts": len(cuts),
        "torn_models": sum(len(each.found.torn) for each in cuts),
        "lost_updates": sum(each.update_lost for each in cuts),
        "updates_that_waited": sum(each.found.pending is not None for each in cuts),
        "blocks_unflushed": sum(each.loss.unflushed for each in cuts),
        "blocks_lost": sum(each.loss.lost for each in cuts),
        "ready_s_after_cuts": median(each.ready_s for each in cuts) if cuts else None,
        "cuts": [asdict(each) for each in cuts],
    }


if __name__ == "__main__":
    sys.exit(main())
