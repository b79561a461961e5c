# SPDX-License-Identifier: Apache-2.0
"""The command `fedlearn-qemu`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from fedlearn import command
from fedlearn.errors import ExitCode
from fedlearn.text import counted
from fedlearn.version import VERSION
from fedlearn.wire.messages import TAILS
from fedlearn_qemu import rootless, tools
from fedlearn_qemu.fleet import run
from fedlearn_qemu.image import Image
from fedlearn_qemu.settings import Settings

CACHE = Path("build/qemu/cache")
_HELP = """examples:
  fedlearn-qemu
  fedlearn-qemu --devices 4 --rounds 5
  fedlearn-qemu --image build/tmp/deploy/images/qemuarm64
  fedlearn-qemu --image build/tmp/deploy/images/qemuarm64 --devices 3 --stand-ins 1

exit codes:
  0 done   1 failed   66 a program or file is missing   78 wrong configuration   130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not 0 <= options.stand_ins <= options.devices:
        parser.error(f"--stand-ins must be from 0 to the {options.devices} of --devices")
    settings = Settings(
        devices=options.devices,
        rounds=options.rounds,
        seed=options.seed,
        samples=options.samples,
        tail=options.tail,
        memory_mb=options.memory_mb,
        cores=options.cores,
        user_network=options.user_network,
        limit_s=options.limit_s,
    )
    rootless.enter(sys.argv[1:] if arguments is None else arguments)
    command.stop_on_signals()
    return command.run("fedlearn-qemu", lambda: _run(settings, options))


def _run(settings: Settings, options: argparse.Namespace) -> int:
    console = Console(stderr=options.json)
    began = time.monotonic()

    def say(text: str) -> None:
        at = f"{time.monotonic() - began:5.0f} s  "
        console.print(at + text, highlight=False, markup=False, soft_wrap=True)

    tools.require(tools.BOOT)
    image = make_image(options.image, say)
    images = [image] * (settings.devices - options.stand_ins)
    if options.stand_ins:
        images += [make_image(None, say)] * options.stand_ins
    for each in dict.fromkeys(images):
        say(f"image: {each.name}, {each.mb:.0f} MB")
    report = run(settings, images, options.out, say)
    if options.json:
        print(report.to_json())
    console.print(report.table())
    say(f"{counted(report.accepted, 'update')} accepted; results and logs are in {options.out}")
    return ExitCode.OK


def make_image(folder: Path | None, say: Callable[[str], None]) -> Image:
    """BitBake's image in `folder`, or the stand-in."""
    # Each reads files that the other does not need.
    if folder is not None:
        from fedlearn_qemu.deploy import deployed  # noqa: PLC0415

        return deployed(folder, CACHE)
    from fedlearn_qemu.standin.make import stand_in  # noqa: PLC0415

    return stand_in(CACHE, say)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    usual = Settings()
    parser = argparse.ArgumentParser(
        prog="fedlearn-qemu",
        description="Federate the digits over emulated ARM64 devices that boot an image.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fedlearn {VERSION}")
    parser.add_argument(
        "--image",
        type=lambda text: Path(text) if text else None,
        metavar="FOLDER",
        help="BitBake's deploy folder (default: the stand-in image, made of Debian's packages)",
    )
    parser.add_argument(
        "--stand-ins",
        type=int,
        default=0,
        metavar="N",
        help="with --image: the last N devices boot the stand-in image (default: 0)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/qemu/run"), help="folder of the run"
    )
    for name, kind in (
        ("devices", _positive),
        ("rounds", _positive),
        ("samples", _positive),
        ("memory-mb", _positive),
        ("cores", _positive),
        ("seed", int),
        ("limit-s", float),
    ):
        default = getattr(usual, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}", type=kind, default=default, metavar="N", help=f"default: {default}"
        )
    parser.add_argument("--tail", choices=TAILS, default=usual.tail)
    parser.add_argument(
        "--user-network", action="store_true", help="QEMU's own network, as without root: no mDNS"
    )
    parser.add_argument("--json", action="store_true", help="print the report to stdout")
    return parser
