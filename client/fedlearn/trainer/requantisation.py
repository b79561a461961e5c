# SPDX-License-Identifier: Apache-2.0
"""Requantisation: from an int32 accumulator to the int8 of the next tensor, bit by bit.

Every integer kernel ends with `round(acc * m)` where the real multiplier m is s_x s_w / s_y. The
runtimes differ in how they hold m and how they round; each way is here once. Accumulators come in
as float64 holding integers, results leave as float32 holding integers without the zero point.

- FLOAT32 (XNNPACK): m in float32, product in float32, round half to even.
- FIXED_POINT (ruy, the kernels of FULLY_CONNECTED and CONV_2D): m = M 2^(e-31) with a 31-bit M,
  exact product, round half up.
- FIXED_POINT_TWICE (TFLite's portable `MultiplyByQuantizedMultiplier`): the same M and e, but the
  high half of the doubled product is rounded first, and again after the shift by e.

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

    FIXED_POINT = "fixed point"
    FIXED_POINT_TWICE = "fixed point, rounded twice"
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
        smallest = float(self._real.min())
        self._fast = (
            arithmetic is Arithmetic.FIXED_POINT and _LARGEST_OUTPUT / smallest < _EXACT_ACCUMULATOR
        )

    def __call__(self, accumulator: NDArray[np.float64]) -> NDArray[np.float32]:
        """Rescale an accumulator (..., C) of integers; the result is not yet clamped."""
        if self.arithmetic is Arithmetic.FLOAT32:
            return np.rint(accumulator.astype(np.float32) * self._factor)
        if self._fast:
            scaled = accumulator * self._real
            scaled += 0.5
            return np.floor(scaled, out=scaled).astype(np.float32)
        exact = accumulator.astype(np.int64)
        if self.arithmetic is Arithmetic.FIXED_POINT:
            shift = 31 - self._exponent
            return ((exact * self._multiplier + (1 << (shift - 1))) >> shift).astype(np.float32)
        return self._rounded_twice(exact).astype(np.float32)

    def _rounded_twice(self, exact: NDArray[np.int64]) -> NDArray[np.int64]:
        left = np.maximum(self._exponent, 0)
        right = np.maximum(-self._exponent, 0)
        product = (exact << left) * self._multiplier
        # SaturatingRoundingDoublingHighMul: nearest, ties away from zero; division truncates.
        nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
        high = np.where(nudged >= 0, nudged >> 31, -((-nudged) >> 31))
        # RoundingDivideByPOT: nearest, ties away from zero.
        mask = (np.int64(1) << right) - 1
        threshold = (mask >> 1) + (high < 0)
        return (high >> right) + ((high & mask) > threshold)
