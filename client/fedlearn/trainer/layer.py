# SPDX-License-Identifier: Apache-2.0
"""One layer of the tail, forward and backward.

Activations are float32 arrays of integers *without* their zero point, so that zero is real zero
(padding, a dead ReLU). Errors are float32 in real units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator, Tensor
from fedlearn.model.schema import Activation
from fedlearn.trainer.error_quantisation import quantise
from fedlearn.trainer.exact import Real
from fedlearn.trainer.parameters import Parameter
from fedlearn.trainer.requantisation import Arithmetic, Requantiser

# No weight moves by more than this many of its 254 grid steps in one SGD step: a layer's step that
# would is scaled down as a whole. Without it one batch far from what the model knows (a new class,
# whose logits are off by 30) can kill every ReLU of a layer for good. Clipping the update and not
# the gradient is due to Shazeer and Stern 2018 ("Adafactor", section 6); the largest element as the
# norm is exact in any order of summation.
LARGEST_STEP = 8.0


class Layer(ABC):
    """An operator that the tail runs itself."""

    def __init__(self, model: Model, operator: Operator) -> None:
        self.operator = operator
        self.input = model.tensors[operator.inputs[0]]
        self.output = model.tensors[operator.outputs[0]]
        if min(self.input.shape, default=0) < 1 or min(self.output.shape, default=0) < 1:
            raise ModelError(f"operator {operator.index} ({operator.name}) has an empty tensor")

    @abstractmethod
    def forward(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Activations (N, ...) of the input tensor to those of the output tensor."""

    @abstractmethod
    def backward(
        self, errors: NDArray[np.float32], *, to_input: bool
    ) -> NDArray[np.float32] | None:
        """Errors of the output to errors of the input, None unless `to_input`.

        Uses what the last `forward` saw; a layer with parameters keeps their gradients.
        """


class WeightedLayer(Layer):
    """FULLY_CONNECTED and the convolutions: a sum of products, a bias, a clamp.

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

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        weight = model.tensors[operator.inputs[1]]
        bias = operator.inputs[2] if len(operator.inputs) > 2 else -1
        self.weight_index, self.bias_index = weight.index, bias
        self.weight = Parameter(self._arranged(model.array(weight.index)))
        channels = self.output.shape[-1]
        self._check(weight, channels)
        self._weight_scales = weight.scales
        has_bias = bias >= 0 and model.tensors[bias].is_constant
        if has_bias and model.tensors[bias].shape != (channels,):
            raise ModelError(f"{model.tensors[bias].name}: not one bias for each channel")
        self.bias = Parameter(model.array(bias) if has_bias else np.zeros(channels, np.int32))
        self.activation = self._activation()
        self._set_clamp(self.activation)
        self.arithmetic = self.usual()
        self._input_scale = self.input.scale
        self._logit_scales = (self.input.scales * self._weight_scales).astype(np.float32)
        self.trains_weight = self.trains_bias = False
        self._weight_gradient: Real | None = None
        self._bias_gradient: NDArray[np.float64] | None = None
        self._error_scale = 1.0
        self._clamped = np.empty(0, np.float32)

    def _check(self, weight: Tensor, channels: int) -> None:
        if weight.shape[self.channel_axis] != channels:
            raise ModelError(f"{weight.name}: {weight.shape} weights for {channels} channels")
        per_channel = len(weight.scales) > 1
        if per_channel and (weight.axis != self.channel_axis % len(weight.shape)):
            raise ModelError(f"{weight.name}: scales along axis {weight.axis} are not supported")
        if per_channel and len(weight.scales) != channels:
            raise ModelError(f"{weight.name}: {len(weight.scales)} scales, {channels} channels")

    @staticmethod
    def usual() -> Arithmetic:
        """How the kernel of this operator rounds in the runtimes that are known."""
        return Arithmetic.TWICE_UP

    @property
    def arithmetic(self) -> Arithmetic:
        """How this operator's kernel rounds; the self-test of the tail finds it out."""
        return self._requantise.arithmetic

    @arithmetic.setter
    def arithmetic(self, arithmetic: Arithmetic) -> None:
        self._requantise = Requantiser(
            arithmetic, self.input.scales, self._weight_scales, self.output.scales
        )

    @abstractmethod
    def _activation(self) -> Activation:
        """The fused activation in the operator's options."""

    def _arranged(self, weight: NDArray[np.int8] | NDArray[np.int32]) -> NDArray[np.int8]:
        """The weight tensor as a matrix, (C, K); its values keep the order of the file."""
        return weight.reshape(weight.shape[0], -1).astype(np.int8, copy=False)

    @abstractmethod
    def _accumulate(self, x: NDArray[np.float32]) -> Real:
        """The sums of products as rows (R, C), exact; keeps what the gradients need."""

    @abstractmethod
    def _gradient(self, errors: NDArray[np.float32]) -> Real:
        """Gradient of the arranged weight for integer errors (R, C), exact."""

    @abstractmethod
    def _to_input(self, errors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Integer errors (R, C) through the weights to the shape of the input.

        The same bits everywhere: exact, or added element by element in a fixed order.
        """

    def _set_clamp(self, activation: Activation) -> None:
        zero, scale = self.output.zero_point, self.output.scale
        lowest, highest = -128 - zero, 127 - zero
        bounds = {
            Activation.NONE: (None, None),
            Activation.RELU: (0.0, None),
            Activation.RELU6: (0.0, 6.0),
            Activation.RELU_N1_TO_1: (-1.0, 1.0),
        }.get(activation)
        if bounds is None:
            raise ModelError(
                f"operator {self.operator.index} ({self.operator.name}): the fused activation "
                f"{activation.name} cannot be trained"
            )
        low, high = bounds
        self.lowest = lowest if low is None else max(lowest, _steps(low, scale))
        self.highest = highest if high is None else min(highest, _steps(high, scale))

    def accumulator(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """The int32 accumulator, bias included, as float64 rows (R, C)."""
        return np.add(self._accumulate(x), self.bias.grid, dtype=np.float64)

    def forward(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The operator as the runtime computes it, bit by bit."""
        y = self._requantise(self.accumulator(x))
        np.clip(y, self.lowest, self.highest, out=y)
        self._clamped = y
        return y.reshape(len(x), *self.output.shape[1:])

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Accumulators in real units, float32 (R, C): finer than the int8 output, not clamped."""
        self._clamped = np.empty(0, np.float32)
        return self.accumulator(x).astype(np.float32) * self._logit_scales

    def backward(
        self, errors: NDArray[np.float32], *, to_input: bool
    ) -> NDArray[np.float32] | None:
        """Quantise the errors, keep the parameters' gradients, pass errors down."""
        rows = errors.reshape(-1, self.output.shape[-1])
        if self._clamped.size:
            rows = rows * ((self._clamped > self.lowest) & (self._clamped < self.highest))
        integers, self._error_scale = quantise(rows)
        if self.trains_weight:
            self._weight_gradient = self._gradient(integers)
        if self.trains_bias:
            self._bias_gradient = integers.sum(axis=0, dtype=np.float64)
        if not to_input:
            return None
        if len(self._weight_scales) == 1:
            scale = self._error_scale * float(self._weight_scales[0])
            return self._to_input(integers) * np.float32(scale)
        integers, scale = quantise(rows * self._weight_scales)
        return self._to_input(integers) * np.float32(scale)

    def update(self, rate: float) -> None:
        """One SGD step on the gradients of the last `backward`; `rate` is lr / batch size."""
        scales = self._weight_scales.astype(np.float64)
        real = rate * self._error_scale
        if self._weight_gradient is not None:
            gradient, self._weight_gradient = self._weight_gradient, None
            factors = real * self._input_scale / scales
            reach = np.maximum(gradient.max(self.terms_axis), -gradient.min(self.terms_axis))
            share = LARGEST_STEP / max(float((reach * factors).max()), LARGEST_STEP)
            real *= share
            self.weight.step(gradient, self._per_channel(factors * share))
        if self._bias_gradient is not None:
            self.bias.step(self._bias_gradient, real / (self._input_scale * scales))
            self._bias_gradient = None

    def _per_channel(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Factors of the channels, shaped to broadcast against the arranged weight."""
        return factors[:, None]

    def trained(self) -> dict[int, NDArray[np.int8] | NDArray[np.int32]]:
        """Tensor number -> values now, flat, of the parameters that are trained."""
        values: dict[int, NDArray[np.int8] | NDArray[np.int32]] = {}
        if self.trains_weight:
            values[self.weight_index] = self.weight.values().ravel()
        if self.trains_bias:
            values[self.bias_index] = self.bias.values().ravel()
        return values


def _steps(real: float, scale: float) -> int:
    """Real units in steps of the output's grid; TFLite rounds half away from zero in float32."""
    ratio = float(np.float32(real) / np.float32(scale))
    return int(np.floor(abs(ratio) + 0.5)) * (1 if ratio >= 0 else -1)
