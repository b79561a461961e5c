# SPDX-License-Identifier: Apache-2.0
"""QUANTIZE from int8 to int8: the same real values in another scale."""

from __future__ import annotations

from math import prod

import numpy as np

from fedlearn.trainer.fixed_point import FixedPoint, Integers
from fedlearn.trainer.lookup import LookupLayer

_LANES = 16


class Quantize(LookupLayer):
    """A change of scale. The second rounding takes halves up in vectors, else away from zero."""

    has_vector_code = True

    def _factor(self) -> FixedPoint:
        return FixedPoint(np.array(self.input.scale / self.output.scale))

    def _portable(self, *operands: Integers) -> Integers:
        return self._factor().away(operands[0])

    def _vector(self, *operands: Integers) -> Integers:
        return self._factor().up(operands[0])

    def _runs(self) -> tuple[int, int]:
        return prod(self.output.shape[1:]), _LANES
