# SPDX-License-Identifier: Apache-2.0
"""Requantisation: from an int32 accumulator to the int8 of the next tensor, bit by bit.

Every integer kernel ends with `round(acc * m)` where the real multiplier m is s_x s_w / s_y. The
runtimes differ in how they hold m and how they round; each way is here once. Accumulators come in
as float64 holding integers, results leave as float32 holding integers without the zero point.

- FLOAT32 (XNNPACK): m in float32, product in float32, round half to even.
- FIXED_POINT: m = M 2^(e-31) with a 31-bit M, exact product, round half up.
- TWICE_UP (ruy on x86): the same M and e; the product is rounded to M's high half first (half up),
  then again after the shift by e (half up).
- TWICE_AWAY (TFLite's portable `MultiplyByQuantizedMultiplier`): the same, but the second rounding
  takes halves away from zero.

M and e as in Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 2.2.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

# A float64 holds integers of 53 bits: the product of a 31-bit multiplier with an accumulator
# below 2^22 is exact. A larger accumulator must saturate anyway for the fast way to be allowed.
_EXACT_ACCUMULATOR = 2.0**22
_LARGEST_OUTPUT = 256.0


class Arithmetic(Enum):
    """How a kernel rounds."""

    TWICE_UP = "fixed point, rounded twice, halves up"
    TWICE_AWAY = "fixed point, rounded twice, halves away from zero"
    FIXED_POINT = "fixed point"
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
        fraction, exponent = np.frexp(real)
        multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
        overflow = multiplier == 1 << 31
        self._multiplier = np.where(overflow, multiplier >> 1, multiplier)
        self._exponent = np.where(overflow, exponent + 1, exponent).astype(np.int64)
        self._real = self._multiplier * 2.0 ** (self._exponent - 31.0)
        # Fast is float64; it is exact for every accumulator that does not saturate the output.
        self._fast = _LARGEST_OUTPUT / float(self._real.min()) < _EXACT_ACCUMULATOR
        self._left = 2.0 ** np.maximum(self._exponent, 0)
        self._right = 2.0 ** np.minimum(self._exponent, 0)

    def __call__(self, accumulator: NDArray[np.float64]) -> NDArray[np.float32]:
        """Rescale an accumulator (..., C) of integers; the result is not yet clamped."""
        if self.arithmetic is Arithmetic.FLOAT32:
            return np.rint(accumulator.astype(np.float32) * self._factor)
        if not self._fast:
            return self._in_integers(accumulator.astype(np.int64)).astype(np.float32)
        if self.arithmetic is Arithmetic.FIXED_POINT:
            return _half_up(accumulator * self._real).astype(np.float32)
        high = _half_up(accumulator * (self._multiplier * self._left * 2.0**-31))
        high *= self._right
        if self.arithmetic is Arithmetic.TWICE_UP:
            return _half_up(high).astype(np.float32)
        high += np.copysign(0.5, high)
        return np.trunc(high, out=high).astype(np.float32)

    def _in_integers(self, exact: NDArray[np.int64]) -> NDArray[np.int64]:
        """The fixed-point ways as TFLite writes them, for multipliers so small that float64 ends.

        |exact| < 2^31 and M < 2^31, so nothing overflows but for multipliers of 2 and more, which
        no kernel has whose accumulator can be that large.
        """
        if self.arithmetic is Arithmetic.FIXED_POINT:
            shift = 31 - self._exponent
            return (exact * self._multiplier + (np.int64(1) << (shift - 1))) >> shift
        left, right = np.maximum(self._exponent, 0), np.maximum(-self._exponent, 0)
        high = ((exact << left) * self._multiplier + (1 << 30)) >> 31
        mask = (np.int64(1) << right) - 1
        if self.arithmetic is Arithmetic.TWICE_UP:
            return (high + ((mask + 1) >> 1)) >> right
        return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def _half_up(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values += 0.5
    return np.floor(values, out=values)
