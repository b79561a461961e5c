# SPDX-License-Identifier: Apache-2.0
"""What the tail's int8 activations would have to hold, measured while the tail is judged.

Layers report their integers before the clamp (`Layer.report`). A value that the fused activation
changes anyway (below a ReLU's zero) is not cut off by int8, so it counts with what the activation
makes of it. Least, greatest and counts of integers: the same bits in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedlearn.model.ties import FIXED, activation_bounds
from fedlearn.trainer.layer import Layer
from fedlearn.wire.messages import ActivationRange


class RangeMeter:
    """Watches layers while it is entered; `ranges` says what it saw of those that report."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._gauges = [
            (layer, _Gauge(layer)) for layer in layers if layer.operator.name not in FIXED
        ]

    def __enter__(self) -> Self:
        for layer, gauge in self._gauges:
            layer.watch = gauge.see
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for layer, _ in self._gauges:
            layer.watch = None

    def ranges(self) -> tuple[ActivationRange, ...]:
        """One for each activation that was made, in execution order."""
        return tuple(gauge.range() for _, gauge in self._gauges if gauge.seen)


class _Gauge:
    """The extremes of one layer's output, in steps without zero point."""

    def __init__(self, layer: Layer) -> None:
        output = layer.output
        self._index, self._scale = output.index, output.scale
        self._allowed = activation_bounds(layer.operator)
        self._lowest, self._highest = -128 - output.zero_point, 127 - output.zero_point
        # Beyond the ends of int8 there may be nothing that the activation would let through.
        self._cuts_low = self._allowed[0] < self._lowest * self._scale
        self._cuts_high = self._allowed[1] > self._highest * self._scale
        self._least, self._greatest = np.inf, -np.inf
        self._cut = 0
        self.seen = 0

    def see(self, values: NDArray[Any]) -> None:
        """Take one batch of integers in."""
        self._least = min(self._least, float(values.min()))
        self._greatest = max(self._greatest, float(values.max()))
        self.seen += values.size
        if self._cuts_low:
            self._cut += int(np.count_nonzero(values < self._lowest))
        if self._cuts_high:
            self._cut += int(np.count_nonzero(values > self._highest))

    def range(self) -> ActivationRange:
        """What was seen, in real units."""
        low, high = (
            min(max(steps * self._scale, self._allowed[0]), self._allowed[1])
            for steps in (self._least, self._greatest)
        )
        return ActivationRange(self._index, low, high, self._cut / self.seen)
