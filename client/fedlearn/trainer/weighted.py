# SPDX-License-Identifier: Apache-2.0
"""FULLY_CONNECTED and the convolutions: a sum of products, a bias, a clamp."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator, Tensor
from fedlearn.trainer.error_quantisation import quantise
from fedlearn.trainer.exact import Real, column_sums
from fedlearn.trainer.layer import Array, Layer, clamp
from fedlearn.trainer.parameters import Parameter
from fedlearn.trainer.requantisation import Arithmetic, Requantiser

# No weight moves by more than this many of its 254 grid steps in one SGD step: a layer's step that
# would is scaled down as a whole. Without it one batch far from what the model knows (a new class,
# whose logits are off by 30) can kill every ReLU of a layer for good. Clipping the update and not
# the gradient is due to Shazeer and Stern 2018 ("Adafactor", section 6); the largest element as the
# norm is exact in any order of summation. Where only biases train, what counts are steps of the
# output's grid, by which a bias moves every output of its channel.
LARGEST_STEP = 8.0
# Up to here float32 holds every integer.
_LARGEST_FLOAT32 = 2.0**24


class WeightedLayer(Layer):
    """What the operators with weights share.

    With the centred input x, errors dy of the real output and scales s_x, s_w[c]: the gradient of
    a real weight is s_x dy^T x, and a step of the grid is s_w[c] real units, so SGD with rate lr
    moves w_q by (lr / s_w[c]) s_x dy^T x. That is the quantisation-aware scaling of Lin et al.
    2022 ("On-Device Training Under 256KB Memory"). The straight-through estimator stands for the
    rounding; where the clamp holds the output, errors stop.
    """

    # Where output channels lie in the weight tensor.
    channel_axis = 0
    # The axis of the arranged weight that a sum runs over.
    terms_axis = 1
    # One rounding is nearer to the real value than two are, and float32 is fast in NumPy.
    pinned = Arithmetic.FLOAT32

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        weight = model.tensors[operator.inputs[1]]
        bias = operator.inputs[2] if len(operator.inputs) > 2 else -1
        self.weight_index, self.bias_index = weight.index, bias
        self.weight = Parameter(self._arranged(model.array(weight.index)))
        channels = self.output.shape[-1]
        self._check(weight, channels)
        self._weight_scales = weight.scales
        self._steps = weight.scales.astype(np.float64)
        has_bias = bias >= 0 and model.tensors[bias].is_constant
        if has_bias and model.tensors[bias].shape != (channels,):
            raise ModelError(f"{model.tensors[bias].name}: not one bias for each channel")
        self.bias = Parameter(model.array(bias) if has_bias else np.zeros(channels, np.int32))
        self.lowest, self.highest = clamp(operator, self.output)
        # Places of a line of the output: the width of an image.
        self._places = self.output.shape[-2] if len(self.output.shape) == 4 else 1
        self.choose(self.arithmetics()[0])
        self._input_scale = self.input.scale
        self._logit_scales = (self.input.scales * self._weight_scales).astype(np.float32)
        self.trains_weight = self.trains_bias = False
        self._weight_gradient: Real | None = None
        self._bias_gradient: NDArray[np.float64] | None = None
        self._error_scale = 1.0
        # Where the clamp let the last output through; None: there was no clamp.
        self._open: NDArray[np.bool_] | None = None

    def _check(self, weight: Tensor, channels: int) -> None:
        if weight.shape[self.channel_axis] != channels:
            raise ModelError(f"{weight.name}: {weight.shape} weights for {channels} channels")
        per_channel = len(weight.scales) > 1
        if per_channel and (weight.axis != self.channel_axis % len(weight.shape)):
            raise ModelError(f"{weight.name}: scales along axis {weight.axis} are not supported")
        if per_channel and len(weight.scales) != channels:
            raise ModelError(f"{weight.name}: {len(weight.scales)} scales, {channels} channels")

    def arithmetics(self) -> tuple[Arithmetic, ...]:
        """Every rounding there is: kernels differ by runtime, delegate and machine."""
        return tuple(Arithmetic)

    def choose(self, arithmetic: Arithmetic) -> None:
        """Requantise as a kernel does that rounds so."""
        # The last channels of a place are others than those of a line.
        self._by_place = arithmetic is Arithmetic.TWICE_VECTORS
        self._in_float32 = arithmetic is Arithmetic.FLOAT32
        first, second = self._scales()
        second = second if self._by_place else self._tiled(second)
        self._requantise = Requantiser(arithmetic, first, second, self.output.scales)

    def _scales(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The scales whose product in double precision the kernel divides by the output's."""
        return self.input.scales, self._weight_scales

    def _arranged(self, weight: NDArray[np.int8] | NDArray[np.int32]) -> NDArray[np.int8]:
        """The weight tensor as a matrix, (C, K); its values keep the order of the file."""
        return weight.reshape(weight.shape[0], -1).astype(np.int8, copy=False)

    @abstractmethod
    def _accumulate(self, x: NDArray[np.float32]) -> Real:
        """The sums of products as rows (R, C), exact.

        Keeps what the gradient of the weight needs, if that is trained.
        """

    @abstractmethod
    def _gradient(self, errors: NDArray[np.float32]) -> Real:
        """Gradient of the arranged weight for integer errors (R, C), exact."""

    @abstractmethod
    def _to_input(self, errors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Integer errors (R, C) through the weights to the shape of the input.

        The same bits everywhere: exact, or added element by element in a fixed order.
        """

    def accumulator(self, x: NDArray[np.float32]) -> Real:
        """The int32 accumulator, bias included, as rows (R, C).

        float64, or float32 where the arithmetic rounds the accumulator to that: of two integers
        that float32 holds it gives the rounded sum.
        """
        total, bias = self._accumulate(x), self.bias.grid
        if not (self._in_float32 and np.abs(bias).max() <= _LARGEST_FLOAT32):
            total = total.astype(np.float64, copy=False)
        lines = self._lines(total)
        lines += self._tiled(bias.astype(total.dtype, copy=False))
        return total

    def _lines(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows (R, C) of a contiguous array as fewer and longer ones, for `_tiled`.

        Eight numbers a channel vector, as in a small convolution, keep NumPy's loops too short.
        """
        return rows.reshape(-1, self._places * rows.shape[1])

    def _tiled(self, channels: NDArray[Any]) -> NDArray[Any]:
        """One number for each channel, or for all, repeated over the places of a line."""
        return np.tile(channels, self._places) if len(channels) > 1 else channels

    def _rescaled(self, total: Real) -> Array:
        """Accumulators (R, C) on the output's grid, not yet clamped."""
        rows = total if self._by_place else self._lines(total)
        return self._requantise(rows).reshape(total.shape)

    def forward(self, *inputs: Array) -> Array:
        """The operator as the runtime computes it, bit by bit."""
        (x,) = inputs
        y = self._rescaled(self.accumulator(x))
        self.report(y)
        np.maximum(y, self.lowest, out=y)
        np.minimum(y, self.highest, out=y)
        self._open = (y > self.lowest) & (y < self.highest)
        return y.reshape(len(x), *self.output.shape[1:])

    def logits(self, x: Array) -> Array:
        """Accumulators in real units, float32 (R, C): finer than the int8 output, not clamped."""
        self._open = None
        accumulator = self.accumulator(x)
        if self.watch is not None:  # applications read the int8 output
            self.report(self._rescaled(accumulator))
        return accumulator.astype(np.float32, copy=False) * self._logit_scales

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """Quantise the errors, keep the parameters' gradients, pass errors down."""
        rows = errors.reshape(-1, self.output.shape[-1])
        if self._open is not None:
            rows = rows * self._open
        integers, self._error_scale = self.quantise(rows)
        if self.trains_weight:
            self._weight_gradient = self._gradient(integers)
        if self.trains_bias:
            self._bias_gradient = column_sums(integers)
        if not wanted[0]:
            return (None,)
        if len(self._weight_scales) == 1:
            scale = self._error_scale * float(self._weight_scales[0])
        else:
            scaled = self._lines(rows) * self._tiled(self._weight_scales)
            integers, scale = self.quantise(scaled.reshape(rows.shape))
        return (self._to_input(integers) * np.float32(scale),)

    def gradient_square(self) -> float:
        """Squared l2 norm of the summed gradients, in real units, to 8 bits a number.

        Rounded to integers first, so that the sums of squares are exact in any order.
        """
        total = 0.0
        for gradient, scale in (
            (self._weight_gradient, self._error_scale * self._input_scale),
            (self._bias_gradient, self._error_scale),
        ):
            if gradient is not None:
                integers, step = quantise(gradient.astype(np.float32))
                squares = float(np.square(integers).sum(dtype=np.float64))
                total += squares * (step * scale) ** 2
        return total

    def update(self, rate: float, pull: float = 0.0) -> None:
        """One SGD step on the gradients of the last `backward`; `rate` is lr / batch size.

        `pull` is the share of the way back to the start (FedProx: lr mu).
        """
        scales = self._steps
        real = rate * self._error_scale
        if self._weight_gradient is not None:
            gradient, self._weight_gradient = self._weight_gradient, None
            factors = real * self._input_scale / scales
            greatest = np.maximum.reduce(gradient, axis=self.terms_axis)
            least = np.minimum.reduce(gradient, axis=self.terms_axis)
            farthest = np.maximum(greatest, -least) * factors
            share = LARGEST_STEP / max(float(np.maximum.reduce(farthest)), LARGEST_STEP)
            real *= share
            self.weight.step(gradient, self._per_channel(factors * share), pull)
        elif self._bias_gradient is not None:
            farthest = np.abs(self._bias_gradient) * (real / self.output.scale)
            real *= LARGEST_STEP / max(float(np.maximum.reduce(farthest)), LARGEST_STEP)
        if self._bias_gradient is not None:
            self.bias.step(self._bias_gradient, real / (self._input_scale * scales), pull)
            self._bias_gradient = None

    def _per_channel(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Factors of the channels, shaped to broadcast against the arranged weight."""
        return factors[:, None]

    def mark(self, tensors: Collection[int]) -> set[int]:
        """Train what is ours of the tensors with these numbers; returns it."""
        self.trains_weight = self.weight_index in tensors
        self.trains_bias = self.bias_index in tensors
        return {
            index
            for index, trains in (
                (self.weight_index, self.trains_weight),
                (self.bias_index, self.trains_bias),
            )
            if trains
        }

    def parameters(self) -> list[Parameter]:
        """Those of weight and bias that are trained."""
        return [
            parameter
            for parameter, trains in (
                (self.weight, self.trains_weight),
                (self.bias, self.trains_bias),
            )
            if trains
        ]

    def multiply_adds(self) -> int:
        """Multiply-adds of one sample's forward pass."""
        return prod(self.output.shape[1:-1]) * prod(self.weight.shape)

    def trained(self) -> dict[int, NDArray[np.int8] | NDArray[np.int32]]:
        """Tensor number -> values now, flat, of the parameters that are trained."""
        values: dict[int, NDArray[np.int8] | NDArray[np.int32]] = {}
        if self.trains_weight:
            values[self.weight_index] = self.weight.values().ravel()
        if self.trains_bias:
            values[self.bias_index] = self.bias.values().ravel()
        return values
