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
from fedlearn.trainer.fixed_point import FixedPoint
from fedlearn.trainer.layer import Array, Layer
from fedlearn.trainer.requantisation import Arithmetic

# Sums of centred int8 values, 255 at most, are exact in float32 up to here.
_EXACT_CELLS = (1 << 24) // 255
# Channels that the vector code takes at a time.
_VECTOR = 16


class Mean(Layer):
    """The mean of real values, rescaled to the output's grid."""

    kept = ("_open",)
    pinned = Arithmetic.TWICE_AWAY
    # Where int8 could hold the last output.
    _open: NDArray[np.bool_]

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
        self._keeps_dims = bool(operator.options and operator.options.scalar(0, "?"))
        self._use_kernel(list(self._axes) if is_litert() else sorted(written))
        self.choose(self.arithmetics()[0])

    def _use_kernel(self, axes: list[int]) -> None:
        """Compute as the kernel does that the runtime takes when it reads these axes."""
        self._spatial = self._keeps_dims and len(self.input.shape) == 4 and axes == [1, 2]
        self._factor, self._bias = self._spatial_terms() if self._spatial else self._general_terms()

    def pin(self) -> None:
        """The same kernel, too: not all runtimes read axes like -1 as ai-edge-litert does."""
        self._use_kernel(list(self._axes))
        super().pin()

    def _spatial_terms(self) -> tuple[FixedPoint, int]:
        """Factor and bias of the raw sum, computed in float32 as there."""
        scale_in, scale_out = self.input.scales[0], self.output.scales[0]
        shift = np.float32(self.input.zero_point) * scale_in / scale_out
        shift += np.float32(0.5 if shift > 0 else -0.5)
        real = scale_in / (np.float32(self._cells) * scale_out)
        return FixedPoint(np.float64(real)), self.output.zero_point - int(shift)

    def _general_terms(self) -> tuple[FixedPoint, int]:
        """Factor and bias of the centred sum."""
        factor = FixedPoint(np.float64(self.input.scale / self.output.scale))
        factor.divide(self._cells)
        return factor, self.output.zero_point

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
        """Sums times the factor."""
        if self._arithmetic is Arithmetic.TWICE_UP:
            return self._factor.up(total)
        mean = self._factor.away(total)
        if self._arithmetic is Arithmetic.TWICE_VECTORS:
            channels = total.shape[-1]
            vectors = channels - channels % _VECTOR
            mean[..., :vectors] = self._factor.up(total[..., :vectors])
        return mean

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """Each cell's share of the errors; none where int8 could not hold the output."""
        if not wanted[0]:
            return (None,)
        share = errors.reshape(self._open.shape) * self._open / np.float32(self._cells)
        shape = (len(errors), *self.input.shape[1:])
        return (np.ascontiguousarray(np.broadcast_to(share, shape)),)
