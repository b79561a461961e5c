# SPDX-License-Identifier: Apache-2.0
"""One sample of a stream, what may come in its place, and what is counted on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Sample(NamedTuple):
    """What all channels measured at one moment, in the sensor's units, and perhaps its class."""

    values: tuple[float, ...]
    label: int | None = None


# A sample, or in its place None: something was lost here, and no window may reach across.
Item = Sample | None


class SourceLost(Exception):  # noqa: N818 - no error: sensors are unplugged
    """The sensor has gone; it is opened again after a while."""


class SourceEnded(Exception):  # noqa: N818
    """There will be no more: a file, or standard input, is at its end."""


class Source(Protocol):
    """Where samples come from. These two methods are all that one's own class needs."""

    def read(self, timeout_s: float) -> Iterable[Item]:
        """Samples in their order; none after `timeout_s` seconds without any.

        Raises SourceLost (or any OSError) or SourceEnded.
        """

    def close(self) -> None:
        """Let go of the sensor."""


@dataclass(slots=True)
class Counts:
    """What happened to the stream since the start. Whatever is not counted here was stored."""

    bytes: int = 0
    samples: int = 0
    garbage: int = 0  # lines or records that are none
    garbage_bytes: int = 0
    halves: int = 0  # the rest of a line, after the port was opened in the middle of it
    overlong: int = 0  # lines without an end in sight
    lost: int = 0  # records that the sender counted and that did not arrive
    breaks: int = 0  # gaps that no window reaches across
    opened: int = 0  # times that the source was opened
    failures: int = 0  # times that it could not be, or was lost
    clipped: int = 0  # values that the model's int8 cannot hold
    windows: int = 0
    mixed: int = 0  # windows with several labels, which were dropped
    labelled: int = 0  # windows with one label
