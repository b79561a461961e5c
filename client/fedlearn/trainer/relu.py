# SPDX-License-Identifier: Apache-2.0
"""RELU, RELU6 and RELU_N1_TO_1 that stand alone, not fused behind another operator."""

from __future__ import annotations

import numpy as np

from fedlearn.trainer.fixed_point import FixedPoint, Integers
from fedlearn.trainer.lookup import LookupLayer


class Relu(LookupLayer):
    """A change of scale, and a clamp."""

    def _portable(self, *operands: Integers) -> Integers:
        # TFLite divides in float32 here, and in double in QUANTIZE.
        factor = FixedPoint((self.input.scales / self.output.scales).astype(np.float64))
        return factor.away(operands[0])
