# SPDX-License-Identifier: Apache-2.0
"""The int8 grid on which samples are stored: the model's input, behind a normalisation a channel.

`q = round((v - offset) / scale / step) + zero_point`, halves to even, cut off at -128 and 127. One
rounding from the sensor's value to the model's integer: what the model sees is what is stored. The
arithmetic is that of IEEE 754 doubles, one operation after the other, so every device has the same.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedlearn.collect.settings import SamplesConfig

_FAR = 1e6  # steps; whatever is further off is cut off at 128


@dataclass(frozen=True, slots=True)
class Grid:
    """All that the bytes of a window mean. Equal grids have equal windows."""

    channels: tuple[str, ...]
    window: int
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    step: float
    zero_point: int

    @classmethod
    def of(cls, samples: SamplesConfig) -> Grid:
        """The grid that the configuration asks for."""
        count = len(samples.channels)
        return cls(
            samples.channels,
            samples.window,
            samples.offset or (0.0,) * count,
            samples.scale or (1.0,) * count,
            samples.step,
            samples.zero_point,
        )

    @property
    def window_bytes(self) -> int:
        """Bytes of a window: one a value, all channels of a sample side by side."""
        return self.window * len(self.channels)

    @property
    def fingerprint(self) -> str:
        """Eight digits that are the same where the grid is: devices of a task can be compared."""
        return f"{zlib.crc32(self.to_json()):08x}"

    def quantise(self, values: Sequence[float]) -> tuple[bytes, int]:
        """One sample as int8 in two's complement, and how many values were cut off."""
        made, clipped = bytearray(), 0
        for value, offset, scale in zip(values, self.offset, self.scale, strict=True):
            steps = (value - offset) / scale / self.step
            # Cut off before it is rounded: `round` would make 300 digits of the largest doubles.
            number = round(min(max(steps, -_FAR), _FAR)) + self.zero_point
            if not -128 <= number <= 127:
                clipped += 1
                number = 127 if number > 0 else -128
            made.append(number & 0xFF)
        return bytes(made), clipped

    def real(self, byte: int, channel: int) -> float:
        """The value that a stored byte (0..255) of a channel stands for."""
        number = byte - 256 if byte > 127 else byte
        steps = (number - self.zero_point) * self.step
        return steps * self.scale[channel] + self.offset[channel]

    def to_json(self) -> bytes:
        """The grid as JSON, always the same for the same grid."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Grid:
        """Read it back. Raises ValueError, TypeError or LookupError for what is none."""
        values: Mapping[str, Any] = json.loads(text)
        return cls(
            tuple(str(name) for name in values["channels"]),
            int(values["window"]),
            tuple(float(each) for each in values["offset"]),
            tuple(float(each) for each in values["scale"]),
            float(values["step"]),
            int(values["zero_point"]),
        )
