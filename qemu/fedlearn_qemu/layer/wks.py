# SPDX-License-Identifier: Apache-2.0
"""Reads .wks files, as strictly as wic does for what our own use."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

UNITS = {"K": 1, "M": 1024, "G": 1024 * 1024}


class WksError(Exception):
    """A line that wic would refuse."""


class Parser(argparse.ArgumentParser):
    """Raises instead of leaving the program."""

    def error(self, message: str) -> NoReturn:
        """Raise WksError."""
        raise WksError(message)


@dataclass(frozen=True)
class Disk:
    """The partitions in their order, and the boot loader's line."""

    partitions: tuple[argparse.Namespace, ...]
    bootloader: argparse.Namespace


def size_kib(text: str) -> int:
    """A size of wic: a number and K, M or G; M if it says none."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is no size")
    return int(match[1]) * UNITS[match[2] or "M"]


def parsers() -> dict[str, Parser]:
    """The two commands."""
    part = Parser(prog="part", allow_abbrev=False)
    part.add_argument("mountpoint", nargs="?")
    for flag in ("active", "use-label", "use-uuid", "no-table"):
        part.add_argument(f"--{flag}", action="store_true")
    for option in ("source", "sourceparams", "label", "ondisk", "fsoptions", "mkfs-extraopts"):
        part.add_argument(f"--{option}")
    part.add_argument("--part-type")
    part.add_argument("--align", type=int)
    part.add_argument(
        "--fstype", default="vfat", choices=("ext2", "ext3", "ext4", "squashfs", "vfat", "none")
    )
    sizes = part.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=size_kib)
    sizes.add_argument("--fixed-size", type=size_kib)
    bootloader = Parser(prog="bootloader", allow_abbrev=False)
    bootloader.add_argument("--ptable", choices=("msdos", "gpt"), default="msdos")
    bootloader.add_argument("--timeout", type=int)
    bootloader.add_argument("--append")
    return {"part": part, "bootloader": bootloader}


def read(path: Path) -> Disk:
    """Read a file; WksError names its line."""
    known = parsers()
    partitions: list[argparse.Namespace] = []
    bootloaders: list[argparse.Namespace] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            command, *words = shlex.split(line)
            if command not in known:
                raise WksError(f"{command} is no command")
            parsed = known[command].parse_args(words)
            check(parsed)
        except (ValueError, WksError) as error:
            raise WksError(f"{path.name}:{number}: {error}") from None
        (partitions if command == "part" else bootloaders).append(parsed)
    if len(bootloaders) != 1:
        raise WksError(f"{path.name}: {len(bootloaders)} lines of bootloader")
    return Disk(tuple(partitions), bootloaders[0])


def check(parsed: argparse.Namespace) -> None:
    """What wic checks between options."""
    if getattr(parsed, "use_label", False) and not parsed.label:
        raise WksError("--use-label without --label")
