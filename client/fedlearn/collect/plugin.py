# SPDX-License-Identifier: Apache-2.0
"""One's own source: a class with the two methods of `fedlearn.collect.sample.Source`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from fedlearn.collect.sample import Counts, Item, Sample, Source
from fedlearn.errors import ConfigError

GROUP = "fedlearn.sources"


def find_class(name: str, base: Path) -> Callable[..., Source]:
    """The class that `source.use` names; paths start at `base`. Raises ConfigError."""
    place, colon, attribute = name.rpartition(":")
    try:
        if not colon:
            return _entry_point(name)
        module = _file(base / place) if place.endswith(".py") else importlib.import_module(place)
        return cast(Callable[..., Source], getattr(module, attribute))
    except ConfigError:
        raise
    except Exception as error:  # somebody's own code, at its import
        raise ConfigError(
            f"source.use: cannot load {name}: {type(error).__name__}: {error}",
            hint="file.py:Class, package.module:Class, or an entry point of fedlearn.sources",
        ) from error


def _entry_point(name: str) -> Callable[..., Source]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - two MB, for these alone

    found = entry_points(group=GROUP, name=name)
    if not found:
        raise ConfigError(
            f"source.use: no package has an entry point {name} in {GROUP}",
            hint="or name a class: file.py:Class",
        )
    return cast(Callable[..., Source], next(iter(found)).load())


def _file(path: Path) -> object:
    spec = importlib.util.spec_from_file_location("fedlearn_own_source", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"source.use: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class OwnSource:
    """Checks what somebody's own class returns: the stream is as strict as any other."""

    def __init__(
        self, make: Callable[..., Source], options: Mapping[str, Any], channels: int, counts: Counts
    ) -> None:
        self._source = make(**options)
        self._channels, self._counts = channels, counts

    def read(self, timeout_s: float) -> Iterable[Item]:
        """Its samples; each is a tuple of numbers, a `Sample`, or None for a gap."""
        return [self._checked(item) for item in self._source.read(timeout_s)]

    def close(self) -> None:
        """Let it go."""
        self._source.close()

    def _checked(self, item: Any) -> Item:
        if item is None:
            return None
        values, label = item if isinstance(item, Sample) else (item, None)
        try:
            numbers = tuple(float(value) for value in values)
            label = None if label is None else int(label)
        except (TypeError, ValueError):
            numbers = ()
        finite = all(abs(value) < float("inf") for value in numbers)
        if len(numbers) != self._channels or not finite or (label is not None and label < 0):
            self._counts.garbage += 1
            return None
        self._counts.samples += 1
        return Sample(numbers, label)
