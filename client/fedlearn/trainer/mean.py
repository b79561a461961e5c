# SPDX-License-Identifier: Apache-2.0
"""MEAN over any axes but the batch.

TFLite has two kernels for int8, with the sum S of n raw values, zero points z_x and z_y and
m = s_x / s_y; `fix(v, m)` is v m by a 31-bit multiplier and a rounding shift, as in every kernel:

- height and width of (N, H, W, C), dimensions kept: `fix(S, m / n)` plus a rounded bias
  `z_y - round(z_x m)`, both in float32 (optimized/integer_ops/mean.h);
- else: `fix(S - n z_x, m / n) + z_y` with m / n as the multiplier of m divided by n in integers
  (QuantizedMeanOrSum in reference/reduce.h).

tflite-runtime takes the first only if the axes are written as 1 and 2; for LiteRT they may be
negative, or repeated. Vector code (Arm's, and LiteRT's on x86-64) rounds halves of the first up in
whole vectors of channels; all else rounds them away from zero.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator
from fedlearn.runtime import is_litert
from fedlearn.trainer.layer import Array, Layer
from fedlearn.trainer.requantisation import Arithmetic

# Sums of centred int8 values, 255 at most, are exact in float32 up to here.
_EXACT_CELLS = (1 << 24) // 255
# Channels that the vector code takes at a time.
_VECTOR = 16


class Mean(Layer):
    """The mean of real values, rescaled to the output's grid."""

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        shape = self.input.shape
        if len(operator.inputs) != 2:
            raise ModelError(f"operator {operator.index} (MEAN) has no axes")
        written = [int(axis) for axis in model.array(operator.inputs[1]).ravel()]
        if not all(-len(shape) <= axis < len(shape) for axis in written):
            raise ModelError(f"operator {operator.index} (MEAN): no axes {written} in {shape}")
        self._axes = tuple(sorted({axis % len(shape) for axis in written}))
        if not self._axes or self._axes[0] == 0:
            raise ModelError(f"operator {operator.index} (MEAN): axes {written} mix the samples")
        self._cells = prod(shape[axis] for axis in self._axes)
        keeps_dims = bool(operator.options and operator.options.scalar(0, "?"))
        written = list(self._axes) if is_litert() else sorted(written)
        self._spatial = keeps_dims and len(shape) == 4 and written == [1, 2]
        self._multiplier, self._exponent, self._bias = (
            self._spatial_terms() if self._spatial else self._general_terms()
        )
        self.choose(self.arithmetics()[0])
        # Where int8 could hold the last output.
        self._open: NDArray[np.bool_] | None = None

    def _spatial_terms(self) -> tuple[int, int, int]:
        """Multiplier, exponent and bias of the raw sum, computed in float32 as there."""
        scale_in, scale_out = self.input.scales[0], self.output.scales[0]
        shift = np.float32(self.input.zero_point) * scale_in / scale_out
        shift += np.float32(0.5 if shift > 0 else -0.5)
        real = scale_in / (np.float32(self._cells) * scale_out)
        return *_fixed_point(float(real)), self.output.zero_point - int(shift)

    def _general_terms(self) -> tuple[int, int, int]:
        """Multiplier, exponent and bias of the centred sum."""
        multiplier, exponent = _fixed_point(self.input.scale / self.output.scale)
        shift = min(self._cells.bit_length() - 1, 32, 31 + exponent)
        return (multiplier << shift) // self._cells, exponent - shift, self.output.zero_point

    def arithmetics(self) -> tuple[Arithmetic, ...]:
        """What the two kernels are known to do, the usual first."""
        usual = Arithmetic.TWICE_AWAY
        if self._spatial and is_litert():
            usual = Arithmetic.TWICE_VECTORS
        known = (Arithmetic.TWICE_AWAY, Arithmetic.TWICE_VECTORS, Arithmetic.TWICE_UP)
        return (usual, *(each for each in known if each is not usual))

    def choose(self, arithmetic: Arithmetic) -> None:
        """Round halves as a kernel does that computes so."""
        if arithmetic not in self.arithmetics():
            raise ValueError(f"MEAN has no {arithmetic}")
        self._arithmetic = arithmetic

    def forward(self, *inputs: Array) -> Array:
        """The operator as the runtime computes it, bit by bit."""
        (x,) = inputs
        exact = np.float32 if self._cells <= _EXACT_CELLS else np.float64
        total = x.sum(axis=self._axes, keepdims=True, dtype=exact).astype(np.int64)
        if self._spatial:
            total += self._cells * self.input.zero_point
        mean = self._rescale(total) + (self._bias - self.output.zero_point)
        self.report(mean)
        lowest, highest = -128 - self.output.zero_point, 127 - self.output.zero_point
        self._open = (mean >= lowest) & (mean <= highest)
        y = np.clip(mean, lowest, highest).astype(np.float32)
        return y.reshape(len(x), *self.output.shape[1:])

    def _rescale(self, total: NDArray[np.int64]) -> NDArray[np.int64]:
        """round(total M 2^(e-31)): to the high half, halves up, then by the shift."""
        high = (total << max(self._exponent, 0)) * self._multiplier
        high = (high + (1 << 30)) >> 31
        right = max(-self._exponent, 0)
        half = (1 << right) >> 1
        up = (high + half) >> right
        if self._arithmetic is Arithmetic.TWICE_UP:
            return up
        away = np.sign(high) * ((np.abs(high) + half) >> right)
        if self._arithmetic is Arithmetic.TWICE_VECTORS:
            channels = high.shape[-1]
            vectors = channels - channels % _VECTOR
            away[..., :vectors] = up[..., :vectors]
        return away

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """Each cell's share of the errors; none where int8 could not hold the output."""
        if not wanted[0] or self._open is None:
            return (None,)
        share = errors.reshape(self._open.shape) * self._open / np.float32(self._cells)
        shape = (len(errors), *self.input.shape[1:])
        return (np.ascontiguousarray(np.broadcast_to(share, shape)),)


def _fixed_point(real: float) -> tuple[int, int]:
    """M of 31 bits and e with real = M 2^(e-31), as TFLite's QuantizeMultiplier."""
    fraction, exponent = np.frexp(real)
    multiplier = int(np.floor(fraction * 2.0**31 + 0.5))
    if multiplier == 1 << 31:
        return 1 << 30, int(exponent) + 1
    return multiplier, int(exponent)
