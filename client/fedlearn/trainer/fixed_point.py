# SPDX-License-Identifier: Apache-2.0
"""Real factors as TFLite holds them: a 31-bit integer and a power of two.

A real factor is M 2^(e-31) with 2^30 <= M < 2^31 (Jacob et al. 2018, "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 2.2). Kernels multiply in
two steps: the high half of a 64-bit product with M, rounded, then a shift by e, rounded again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

# A smaller exponent moves every bit of the product out; TFLite then takes zero for the factor.
_LEAST_EXPONENT = -31


class FixedPoint:
    """Factors as integers: `multiplier` M and `exponent` e, int64 of the shape of the factors."""

    def __init__(self, real: NDArray[np.float64] | np.float64) -> None:
        fraction, power = np.frexp(real)
        multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
        overflow = multiplier == 1 << 31
        exponent = np.where(overflow, power + 1, power).astype(np.int64)
        lost = exponent < _LEAST_EXPONENT
        self.multiplier = np.where(lost, 0, np.where(overflow, multiplier >> 1, multiplier))
        self._shift(np.where(lost, 0, exponent))

    def _shift(self, exponent: Integers) -> None:
        self.exponent = exponent
        self.left, self.right = np.maximum(exponent, 0), -np.minimum(exponent, 0)

    def divide(self, count: int) -> None:
        """Divide one factor by a count in integers, as QuantizedMeanOrSum does; M is smaller then.

        No bit is moved out: the exponent stays at -31 or above.
        """
        shift = min(count.bit_length() - 1, 32, 31 + int(self.exponent))
        self.multiplier = (self.multiplier << shift) // count
        self._shift(self.exponent - shift)

    def high_half(self, values: Integers) -> Integers:
        """round(values M 2^-31), halves up: what saturating doubling multiplications leave.

        |values| < 2^31 and M < 2^31, so that int64 holds the product.
        """
        return (values * self.multiplier + (1 << 30)) >> 31

    def up(self, values: Integers) -> Integers:
        """Values times the factor, rounded twice: halves up both times."""
        return (self.high_half(values << self.left) + self._half()) >> self.right

    def away(self, values: Integers) -> Integers:
        """Values times the factor, rounded twice: halves up, then halves away from zero."""
        high = self.high_half(values << self.left)
        return np.sign(high) * ((np.abs(high) + self._half()) >> self.right)

    def _half(self) -> Integers:
        return (1 << self.right) >> 1
