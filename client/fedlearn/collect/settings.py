# SPDX-License-Identifier: Apache-2.0
"""The sections of the configuration that say where samples come from and what becomes of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fedlearn.collect.rules import parse_rules
from fedlearn.errors import ConfigError
from fedlearn.wire.messages import NAME, Pattern, Range

KINDS = ("serial", "file", "stdin", "own")
FORMATS = ("lines", "cbor")
# A record of the ring, and a line of text, stay small enough for a microcontroller's sender.
MAX_CHANNELS = 64
MAX_WINDOW_BYTES = 64 * 1024
MAX_CLASSES = 1000
# The ring is dropped by segments, its oldest first: so many of them, at most 2 % at once.
SEGMENTS = 64


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """`[source]`: the sensor. Without `kind` this device collects nothing by itself."""

    kind: Annotated[
        str, "serial, file, stdin or own; empty: no source", Pattern("|".join(("", *KINDS)))
    ] = ""
    port: Annotated[
        str,
        "serial: a path, best one of /dev/serial/by-id/, or usb:VENDOR:PRODUCT[:SERIAL] in hex",
    ] = ""
    baud: Annotated[int, "serial: bits a second", Range(50, 20_000_000)] = 115_200
    format: Annotated[
        str, "lines of text (CSV), or a CBOR sequence with checksums", Pattern("|".join(FORMATS))
    ] = "lines"
    path: Annotated[Path | None, "file: an .npz or .csv, or a folder where such files are put"] = (
        None
    )
    use: Annotated[
        str, "own: file.py:Class, package.module:Class, or an entry point of fedlearn.sources"
    ] = ""
    options: Annotated[dict[str, Any], "own: keyword arguments of the class"] = field(
        default_factory=dict
    )
    labelled: Annotated[bool, "whether the last column is the sample's class"] = False


@dataclass(frozen=True, slots=True)
class SamplesConfig:
    """`[samples]`: the task's windows and their int8 grid, the same on all devices of a task.

    A value v of channel c is stored as round((v - offset[c]) / scale[c] / step) + zero_point.
    """

    channels: Annotated[tuple[str, ...], "names of the columns"] = ()
    window: Annotated[int, "samples of a window", Range(1, MAX_WINDOW_BYTES)] = 1
    stride: Annotated[
        int, "samples from one window to the next; 0: as many as a window", Range(0, 2**31)
    ] = 0
    offset: Annotated[tuple[float, ...], "by channel, what counts as 0; empty: 0"] = ()
    scale: Annotated[tuple[float, ...], "by channel, what counts as 1; empty: 1"] = ()
    step: Annotated[
        float, "scale of the model's input, as fedlearn model inspect shows it", Range(0, 1e9)
    ] = 0.0
    zero_point: Annotated[int, "zero point of the model's input", Range(-128, 127)] = 0
    max_gap_s: Annotated[float, "a pause after which a window begins anew", Range(0.01, 3600)] = 1.0
    classes: Annotated[
        tuple[str, ...], "names of the classes, from class 0 on; a stream may send either"
    ] = ()
    rules: Annotated[
        tuple[str, ...],
        'labels by rule, the first that holds, such as "1 if rms(ax) > 0.8" or "0 if always"',
    ] = ()

    @property
    def window_bytes(self) -> int:
        """Bytes of a window, one a value."""
        return self.window * len(self.channels)


@dataclass(frozen=True, slots=True)
class RingConfig:
    """`[ring]`: the windows that are kept on disk."""

    path: Annotated[Path | None, "directory; default: ring in device.state_dir"] = None
    size_kib: Annotated[int, "KiB that it may take", Range(64, 2**31)] = 16_384
    balance: Annotated[bool, "drop the oldest of the most frequent label, not of all"] = False
    sync_s: Annotated[
        float, "seconds between two writes to disk, which a power cut may cost", Range(0, 3600)
    ] = 30.0
    max_mib_a_day: Annotated[
        float,
        "MiB that may be written a day on the average, for the flash's sake; a ring that rested "
        "may be filled at once",
        Range(0.01, 1e9),
    ] = 512.0


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """`[score]`: how strange each window is to the task's autoencoder."""

    enabled: Annotated[bool, "score windows as they come, in a process of its own"] = False
    quantile: Annotated[
        float, "share of the ring's windows below the threshold", Range(0.5, 0.99999)
    ] = 0.995


def check_source(source: SourceConfig, samples: SamplesConfig, ring: RingConfig) -> None:
    """Raise ConfigError where the sections contradict themselves or each other."""
    if not source.kind:
        return
    needed = {"serial": source.port, "file": source.path, "own": source.use, "stdin": True}
    key = {"serial": "port", "file": "path", "own": "use"}.get(source.kind, "")
    if not needed[source.kind]:
        raise ConfigError(f"source.{key} is missing", hint=f"a {source.kind} source needs it")
    _check_samples(samples)
    if source.labelled and samples.rules:
        raise ConfigError(
            "samples.rules would label what source.labelled says is labelled",
            hint="remove one of the two",
        )
    if ring.size_kib * 1024 < 4 * (samples.window_bytes + 4096):
        raise ConfigError(
            f"ring.size_kib must hold some windows of {samples.window_bytes} bytes",
            hint=f"it is {ring.size_kib}",
        )
    parse_rules(samples.rules, samples.channels, samples.classes)


def _check_samples(samples: SamplesConfig) -> None:
    count = len(samples.channels)
    if not 0 < count <= MAX_CHANNELS:
        raise ConfigError(
            f"samples.channels must name 1 to {MAX_CHANNELS} columns", hint=f"it names {count}"
        )
    for name, number in Counter((*samples.channels,)).items():
        if number > 1 or not Pattern(NAME).allows(name):
            raise ConfigError(
                f"samples.channels: {name!r} is no name, or not the only one",
                hint="letters, digits, dots, dashes and underscores",
            )
    if samples.window_bytes > MAX_WINDOW_BYTES:
        raise ConfigError(
            f"a window of {samples.window_bytes} values is larger than {MAX_WINDOW_BYTES}",
            hint="see samples.window and samples.channels",
        )
    if not samples.step:
        raise ConfigError(
            "samples.step is missing",
            hint="the scale of the model's input: fedlearn model inspect shows it",
        )
    for name, values in (("offset", samples.offset), ("scale", samples.scale)):
        if values and len(values) != count:
            raise ConfigError(f"samples.{name} must have {count} values, one a channel")
        if not all(abs(value) < 1e30 for value in values):
            raise ConfigError(f"samples.{name} must be finite numbers")
    if not all(value > 0 for value in samples.scale):
        raise ConfigError("samples.scale must be numbers above 0")
    if len(samples.classes) > MAX_CLASSES or len({*samples.classes}) < len(samples.classes):
        raise ConfigError(f"samples.classes must be different names, {MAX_CLASSES} at most")


def told(source: SourceConfig, samples: SamplesConfig, ring: RingConfig) -> str:
    """What these sections mean, in a line."""
    where = {
        "serial": f"{source.port} at {source.baud:,} baud, {source.format}",
        "file": str(source.path),
        "own": source.use,
    }.get(source.kind, source.format)
    stride = samples.stride or samples.window
    return (
        f"{source.kind} {where}; windows of {samples.window} x {len(samples.channels)}, one every "
        f"{stride} samples; a ring of {ring.size_kib:,} KiB in {ring.path}"
    )
