# SPDX-License-Identifier: Apache-2.0
"""ADD: both operands in a common, finer scale, a sum, and back.

The common scale is that of the coarser operand, doubled and divided by 2^20. The portable code
rounds a scaled operand twice; the vector code once, and where one operand is a scalar for a whole
run it rounds and then cuts bits off. It also keeps no more than 16 bits of the result: beyond them,
outputs change sides.
"""

from __future__ import annotations

import numpy as np

from fedlearn.trainer.binary import BinaryLayer
from fedlearn.trainer.fixed_point import FixedPoint, Integers
from fedlearn.trainer.layer import Array

_FINER_BITS = 20


class Add(BinaryLayer):
    """y = a + b."""

    scalar_lanes = 8

    def _factors(self) -> list[FixedPoint]:
        """Those of the operands and of the sum."""
        scales = [np.float64(tensor.scale) for tensor in (*self.inputs, self.output)]
        twice = 2 * max(scales[:2])
        reals = [scales[0] / twice, scales[1] / twice, twice / (2.0**_FINER_BITS * scales[2])]
        return [FixedPoint(np.array(real)) for real in reals]

    def _portable(self, *operands: Integers) -> Integers:
        *factors, last = self._factors()
        scaled = [
            factor.away(x << _FINER_BITS) for factor, x in zip(factors, operands, strict=True)
        ]
        return last.away(scaled[0] + scaled[1])

    def _vector(self, *operands: Integers) -> Integers:
        *factors, last = self._factors()
        scaled = []
        _, is_scalar = self._broadcast_run()
        for factor, x in zip(factors, operands, strict=True):
            if is_scalar:
                scaled.append(factor.high_half(x << _FINER_BITS) >> factor.right)
            else:
                scaled.append(factor.high_half((x << _FINER_BITS) >> factor.right))
        return self._wrapped(last.away(scaled[0] + scaled[1]))

    def _slope(self, at: int) -> tuple[Array | None, float]:
        return None, 1.0
