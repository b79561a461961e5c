# SPDX-License-Identifier: Apache-2.0
"""The device's configuration: one TOML file, read into frozen dataclasses.

Each key is described once, in its field's annotation (help text and range): the help, the checks
and the error messages all come from there.
"""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from fedlearn.agent.endpoint import parse_url
from fedlearn.collect.segment import parse_name
from fedlearn.collect.settings import (
    RingConfig,
    SamplesConfig,
    ScoreConfig,
    SourceConfig,
    check_source,
)
from fedlearn.errors import ConfigError, DatasetError
from fedlearn.wire.messages import NAME, TOKEN, Pattern, Range

DEFAULT_PATH = Path("/etc/fedlearn/fedlearn.toml")
# Far more than every key with a long value; a larger file is not a configuration.
MAX_CONFIG_BYTES = 64 * 1024
MAX_TOKEN_BYTES = 1024


def host_name() -> str:
    """Return this machine's name in the form of a device name."""
    return re.sub("[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "device"


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """`[device]`: who this device is and where it keeps its state."""

    name: Annotated[str, "name of this device, unique within the task", Pattern(NAME)] = field(
        default_factory=host_name
    )
    state_dir: Annotated[Path, "directory for models and unsent updates; survives a reboot"] = Path(
        "/var/lib/fedlearn"
    )
    runtime_dir: Annotated[Path, "directory for status.json"] = Path("/run/fedlearn")


@dataclass(frozen=True, slots=True)
class AggregatorConfig:
    """`[aggregator]`: whom this device trains for."""

    task: Annotated[str, "name of the task to join", Pattern(NAME)]
    url: Annotated[str, "https://host:port of the aggregator; empty: found on the LAN by mDNS"] = ""
    ca: Annotated[Path | None, "PEM file of the CA that certifies the aggregator"] = None
    token: Annotated[
        Path | None, "file with the one-time token with which this device enrols at the aggregator"
    ] = None
    insecure: Annotated[bool, "allow plain http, to loopback addresses only"] = False
    interfaces: Annotated[
        tuple[str, ...], "network interfaces (names or IPv4 addresses) for mDNS; empty: all"
    ] = ()

    def read_token(self) -> str:
        """Return the token. Raises ConfigError when there is none."""
        hint = "fedlearn-aggregator tokens makes one; name its file as aggregator.token"
        if self.token is None:
            raise ConfigError("this device is not enrolled, and has no token", hint=hint)
        try:
            with self.token.open("rb") as stream:
                token = stream.read(MAX_TOKEN_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no token"
            raise ConfigError(f"cannot use {self.token}: {reason}", hint=hint) from error
        if not TOKEN.allows(token):
            raise ConfigError(f"{self.token} holds no token", hint=hint)
        return token


@dataclass(frozen=True, slots=True)
class DataConfig:
    """`[data]`: what this device learns from."""

    path: Annotated[
        Path | None,
        "npz file with arrays x (inputs) and y (labels), or a ring; it stays on the device; "
        "default: the ring of [source]",
    ] = None

    def check(self) -> None:
        """Raise `DatasetError` unless there are data."""
        assert self.path is not None  # parse_config sees to it
        try:
            is_ring, found = self.path.is_dir(), self.path.is_file()
            if is_ring:
                found = any(parse_name(each.name) for each in self.path.iterdir())
        except OSError as error:  # a directory on the way may not be entered, or the disk fails
            raise DatasetError(
                f"cannot look for the training data: {error.strerror}",
                hint=f"let the agent's user read {self.path}, or change data.path",
            ) from error
        if is_ring and not found:
            raise DatasetError(
                f"there are no windows in {self.path} yet", hint="fedlearn collect fills it"
            )
        if not found:
            raise DatasetError(f"there is no training data at {self.path}", hint="check data.path")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """`[training]`: what training may cost."""

    threads: Annotated[int, "threads of the trainer process", Range(1, 64)] = 1
    linger_s: Annotated[
        float, "seconds that the trainer process stays after a job for the next one", Range(0, 3600)
    ] = 10.0
    memory_kib: Annotated[
        int,
        "KiB that training may need beside the program itself; 0: no limit; with less than the "
        "round's tensors need, only some of them are trained",
        Range(0, 2**31),
    ] = 0
    personal_epochs: Annotated[
        int,
        "epochs that a copy of the model is trained further for this device alone, kept as "
        "personal.tflite in state_dir; 0: no copy",
        Range(0, 1000),
    ] = 0


class TimeWindow(Pattern):
    """Two times of a day."""

    def allows(self, value: str) -> bool:
        """Whether they are times, and not the same: that would be always, or never."""
        start, _, end = value.partition("-")
        return Pattern.allows(self, value) and start != end

    def __str__(self) -> str:
        return "two different times of day, such as 22:00-06:00"


_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]"


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """`[policy]`: when this device trains. What is left out is no limit."""

    on_mains_only: Annotated[bool, "train only while the board is on mains"] = False
    min_battery_percent: Annotated[
        float | None, "train only with so much charge in the battery", Range(1, 100)
    ] = None
    max_temperature_c: Annotated[
        float | None, "train only while no thermal zone is hotter", Range(1, 150)
    ] = None
    max_load_per_core: Annotated[
        float | None,
        "train only while the load average of other programs (1 min), divided by the number of "
        "cores, is not higher",
        Range(0.01, 100),
    ] = None
    max_memory_pressure_percent: Annotated[
        float | None,
        "train only while programs waited for memory for no larger share of the last 10 s "
        "(some avg10 in /proc/pressure/memory)",
        Range(0.1, 100),
    ] = None
    min_available_memory_kib: Annotated[
        int | None,
        "begin to train only with so many KiB of memory available (MemAvailable)",
        Range(1, 2**31),
    ] = None
    window: Annotated[
        str | None,
        'train only between two times of day, local time, such as "22:00-06:00"',
        TimeWindow(f"{_TIME}-{_TIME}"),
    ] = None


@dataclass(frozen=True, slots=True)
class Config:
    """All of the configuration."""

    aggregator: AggregatorConfig
    data: DataConfig = DataConfig()
    device: DeviceConfig = field(default_factory=DeviceConfig)
    training: TrainingConfig = TrainingConfig()
    policy: PolicyConfig = PolicyConfig()
    source: SourceConfig = field(default_factory=SourceConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    ring: RingConfig = field(default_factory=RingConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)


def load_config(path: Path) -> Config:
    """Read and check the file. Relative paths in it start at its own directory."""
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}",
            hint="give its path with --config; fedlearn agent --help lists its keys",
        ) from error
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        values = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    try:
        return parse_config(values, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error


def parse_config(values: Mapping[str, object], base: Path) -> Config:
    """Check a configuration's values; relative paths start at `base`."""
    sections = get_type_hints(Config)
    _refuse_unknown("section", values, sections)
    parsed = {
        name: _parse_section(name, kind, values.get(name, {}), base)
        for name, kind in sections.items()
    }
    config = _with_ring(Config(**parsed))
    _check_trust(config.aggregator)
    check_source(config.source, config.samples, config.ring)
    return config


def _with_ring(config: Config) -> Config:
    """Fill in where the ring is, and that it is what the device learns from."""
    ring = config.ring.path or config.device.state_dir / "ring"
    data = config.data
    if data.path is None:
        if not config.source.kind:
            hint = "npz file with arrays x (inputs) and y (labels); or [source] names a sensor"
            raise ConfigError("data.path is missing", hint=hint)
        data = DataConfig(ring)
    return replace(config, data=data, ring=replace(config.ring, path=ring))


@dataclass(frozen=True, slots=True)
class Key:
    """One key, described: `shown_default` is "required" or names the default."""

    section: str
    name: str
    kind: Any
    doc: str
    constraint: Range | Pattern | None
    required: bool
    shown_default: str


def keys() -> Iterator[Key]:
    """Describe every key, section by section."""
    for section, kind in get_type_hints(Config).items():
        yield from _keys_of(section, kind)


def _keys_of(section: str, dataclass_: type) -> Iterator[Key]:
    hints = get_type_hints(dataclass_, include_extras=True)
    for each in fields(dataclass_):
        kind, doc, *constraints = get_args(hints[each.name])
        required = each.default is MISSING and each.default_factory is MISSING
        default = each.default if each.default_factory is MISSING else each.default_factory()
        yield Key(
            section,
            each.name,
            kind,
            doc,
            constraints[0] if constraints else None,
            required,
            "required" if required else f"default: {_shown(default)}",
        )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value or "none")


def _parse_section(section: str, kind: type, values: object, base: Path) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{section} must be a section", hint=f"write [{section}]")
    known = {key.name: key for key in _keys_of(section, kind)}
    _refuse_unknown(f"key in [{section}]", values, known)
    parsed = {}
    for name, key in known.items():
        if name in values:
            parsed[name] = _parse_value(f"{section}.{name}", key, values[name], base)
        elif key.required:
            raise ConfigError(f"{section}.{name} is missing", hint=key.doc)
    return kind(**parsed)


def _parse_value(where: str, key: Key, value: object, base: Path) -> object:
    kind = next((each for each in get_args(key.kind) if each in _EXPECTED), key.kind)
    if get_origin(key.kind) is tuple:
        kind = _FLOATS if float in get_args(key.kind) else tuple
    if get_origin(key.kind) is dict:
        kind = dict
    types, expected = _EXPECTED[kind]
    if type(value) not in types:
        raise ConfigError(f"{where} must be {expected}", hint=key.doc)
    if key.constraint is not None and not key.constraint.allows(value):  # type: ignore[arg-type]
        raise ConfigError(f"{where} must be {key.constraint}", hint=f"it is {value!r}")
    if kind is Path:
        if not value:
            raise ConfigError(f"{where} is empty", hint=key.doc)
        return base.absolute() / str(value)
    if isinstance(value, list):
        elements = (int, float) if kind is _FLOATS else (str,)
        if not all(type(each) in elements for each in value):
            raise ConfigError(f"{where} must be {expected}", hint=key.doc)
        return tuple(map(elements[-1], value))
    return float(value) if kind is float else value  # type: ignore[arg-type]


_FLOATS = tuple[float, ...]
# What TOML value each type takes. The exact type counts: true is no integer here.
_EXPECTED: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a string"),
    Path: ((str,), "a string, a path"),
    bool: ((bool,), "true or false"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    tuple: ((list,), "a list of strings"),
    _FLOATS: ((list,), "a list of numbers"),
    dict: ((dict,), "a table"),
}


def _refuse_unknown(what: str, given: Mapping[str, object], known: Mapping[str, object]) -> None:
    for name in given:
        if name not in known:
            import difflib  # noqa: PLC0415 - only for this error; the agent stays small

            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown {what}: {name}", hint=hint)


def _check_trust(aggregator: AggregatorConfig) -> None:
    """Refuse what would leave the aggregator's identity unproven."""
    if aggregator.url:
        parse_url(aggregator.url, insecure=aggregator.insecure)
    elif aggregator.ca is None and not aggregator.insecure:
        raise ConfigError(
            "aggregator.ca is missing, and anyone on the LAN can answer by mDNS",
            hint="name the CA's PEM file; or insecure = true for an aggregator on this machine",
        )
