# SPDX-License-Identifier: Apache-2.0
"""Requantisation: from an int32 accumulator to the int8 of the next tensor, bit by bit.

Every integer kernel ends with `round(acc * m)` where the real multiplier m is s_x s_w / s_y. The
runtimes differ in how they hold m and how they round; each way is here once. Training uses one of
them on every machine (`Layer.pinned`). For what has weights that is FLOAT32: it rounds once, and is
what applications run, where XNNPACK is the default.
Accumulators come in as floats holding integers, results leave as float32 holding integers without
the zero point.

- FLOAT32 (XNNPACK): m in float32, product in float32, round half to even.
- TWICE: m = M 2^(e-31) with a 31-bit M. The product is rounded to its high half first (half up),
  then again after the shift by e. Halves in that second step go up in ruy's and other vector code
  (TWICE_UP), away from zero in TFLite's portable `MultiplyByQuantizedMultiplier` (TWICE_AWAY), and
  in depthwise kernels up in whole vectors of channels and away from zero in the rest
  (TWICE_VECTORS). Elsewhere, too, TWICE_VECTORS is vector code that rounds in its own way, with the
  portable code in the rest; see `LookupLayer`.

M and e are those of `FixedPoint`.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from fedlearn.trainer.exact import Real
from fedlearn.trainer.fixed_point import FixedPoint

# A float64 holds integers of 53 bits: the product of a 31-bit multiplier with an accumulator
# below 2^22 is exact. A larger accumulator must saturate anyway for the fast way to be allowed.
_EXACT_ACCUMULATOR = 2.0**22
_LARGEST_OUTPUT = 256.0
# Channels that the depthwise kernels' vector code takes at a time.
_VECTOR = 8


class Arithmetic(Enum):
    """How a kernel rounds."""

    TWICE_UP = "fixed point, rounded twice, halves up"
    TWICE_AWAY = "fixed point, rounded twice, halves away from zero"
    TWICE_VECTORS = "fixed point, rounded as vectors are but for what fills none"
    FLOAT32 = "float32"


class Requantiser:
    """Applies the multipliers of one operator, one for all channels or one for each."""

    def __init__(
        self,
        arithmetic: Arithmetic,
        input_scale: NDArray[np.float32],
        weight_scales: NDArray[np.float32],
        output_scale: NDArray[np.float32],
    ) -> None:
        """Scales are float32: (1,), (1,) or (C,), and (1,)."""
        self.arithmetic = arithmetic
        if arithmetic is Arithmetic.FLOAT32:
            self._factor = (input_scale * weight_scales) / output_scale
            return
        # TFLite computes the real multiplier in double from the float32 scales.
        real = (
            input_scale.astype(np.float64)
            * weight_scales.astype(np.float64)
            / output_scale.astype(np.float64)
        )
        self._factors = FixedPoint(real)
        self._right = 2.0**-self._factors.right
        self._fast = _LARGEST_OUTPUT / float(real.min()) < _EXACT_ACCUMULATOR

    def __call__(self, accumulator: Real) -> NDArray[np.float32]:
        """Rescale an accumulator (..., C) of integers; the result is not yet clamped."""
        if self.arithmetic is Arithmetic.FLOAT32:
            product = accumulator.astype(np.float32, copy=False) * self._factor
            return np.rint(product, out=product)
        scaled = self._high_half(accumulator.astype(np.float64, copy=False))
        scaled *= self._right
        channels = scaled.shape[-1]
        upwards = {
            Arithmetic.TWICE_UP: channels,
            Arithmetic.TWICE_AWAY: 0,
            Arithmetic.TWICE_VECTORS: channels - channels % _VECTOR,
        }[self.arithmetic]
        result = np.empty(scaled.shape, np.float32)
        up, away = scaled[..., :upwards], scaled[..., upwards:]
        up += 0.5
        np.floor(up, out=result[..., :upwards], casting="same_kind")
        away += np.copysign(0.5, away)
        np.trunc(away, out=result[..., upwards:], casting="same_kind")
        return result

    def _high_half(self, accumulator: NDArray[np.float64]) -> NDArray[np.float64]:
        """round(accumulator 2^left M 2^-31), halves up: an integer of at most 32 bits.

        |accumulator| < 2^31 and M < 2^31, so int64 overflows only for multipliers of 2 and more,
        which no kernel has whose accumulator can be that large.
        """
        if self._fast:
            high = accumulator * np.ldexp(self._factors.multiplier * 2.0**-31, self._factors.left)
            high += 0.5
            return np.floor(high, out=high)
        exact = accumulator.astype(np.int64) << self._factors.left
        return self._factors.high_half(exact).astype(np.float64)
