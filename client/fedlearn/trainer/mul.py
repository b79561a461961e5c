# SPDX-License-Identifier: Apache-2.0
"""MUL: a product, requantised."""

from __future__ import annotations

import numpy as np

from fedlearn.trainer.binary import BinaryLayer
from fedlearn.trainer.fixed_point import FixedPoint, Integers
from fedlearn.trainer.layer import Array


class Mul(BinaryLayer):
    """y = a b.

    The two codes round alike; the vector code saturates the product to 16 bits before it adds the
    zero point, again in 16 bits.
    """

    def _portable(self, *operands: Integers) -> Integers:
        one, two = (tensor.scales for tensor in self.inputs)
        # TFLite computes this factor in float32, those of most other operators in double.
        factor = FixedPoint(((one * two) / self.output.scales).astype(np.float64))
        return factor.away(operands[0] * operands[1])

    def _vector(self, *operands: Integers) -> Integers:
        return self._wrapped(np.clip(self._portable(*operands), -(1 << 15), (1 << 15) - 1))

    def _slope(self, at: int) -> tuple[Array | None, float]:
        return self._operands[1 - at], self.inputs[1 - at].scale
