# SPDX-License-Identifier: Apache-2.0
"""SOFTMAX inside a network; at its end the loss takes it into itself.

Two kernels: a table of exp() in float32 and a float32 sum, and on 64-bit Arm, built by Clang, a
table in 16 bits, an integer sum and a fixed-point factor.
"""

from __future__ import annotations

import os

import numpy as np

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator
from fedlearn.runtime import is_litert
from fedlearn.trainer.fixed_point import FixedPoint
from fedlearn.trainer.layer import Array, Layer
from fedlearn.trainer.requantisation import Arithmetic

_HIGHEST = 255
_LARGEST_UINT16 = np.float32(65535)


class Softmax(Layer):
    """Along the last axis; the output has steps of 1/256 and no negative values."""

    kept = ("_y",)
    pinned = Arithmetic.FLOAT32

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        if self.output.zero_point != -128 or self.input.shape[1:] != self.output.shape[1:]:
            raise ModelError(f"operator {operator.index} ({operator.name}) has a strange output")
        self._beta = np.float32(operator.options.scalar(0, "f") if operator.options else 0)
        self.choose(self.arithmetics()[0])

    def arithmetics(self) -> tuple[Arithmetic, ...]:
        """Of the two runtimes, ai-edge-litert is built by Clang."""
        table16, table32 = Arithmetic.TWICE_UP, Arithmetic.FLOAT32
        is_clang_arm = os.uname().machine == "aarch64" and is_litert()
        return (table16, table32) if is_clang_arm else (table32, table16)

    def choose(self, arithmetic: Arithmetic) -> None:
        """Make the table of exp(), by the distance from the largest value."""
        if arithmetic not in self.arithmetics():
            super().choose(arithmetic)
        self._arithmetic = arithmetic
        distance = -(np.float32(self.input.scale) * self._beta) * np.arange(256, dtype=np.float32)
        # exp() of float64, rounded, is that of float32 whatever the C library.
        powers = np.exp(distance.astype(np.float64)).astype(np.float32)
        if arithmetic is Arithmetic.TWICE_UP:
            powers = np.floor((powers * _LARGEST_UINT16).astype(np.float64) + 0.5)
        self._table = powers.astype(np.float32)

    def forward(self, *inputs: Array) -> Array:
        """The operator as the runtime computes it, bit by bit."""
        (x,) = inputs
        powers = self._table[(x.max(axis=-1, keepdims=True) - x).astype(np.intp)]
        scale = np.float32(self.output.scale)
        if self._arithmetic is Arithmetic.TWICE_UP:
            total = powers.sum(axis=-1, dtype=np.float64, keepdims=True).astype(np.float32)
            factor = FixedPoint((np.float32(1) / (total * scale)).astype(np.float64))
            shares = factor.up(powers.astype(np.int64))
        else:
            # One after the other, which sum() does not promise.
            total = np.add.accumulate(powers, axis=-1)[..., -1:]
            scaled = powers * (np.float32(1) / (total * scale))
            shares = np.floor(scaled.astype(np.float64) + 0.5)
        self._y = np.minimum(shares, _HIGHEST).astype(np.float32)
        return self._y

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """beta p (e - sum(e p)), p the int8 output: the sum is one of integers, so exact."""
        if not wanted[0]:
            return (None,)
        integers, error_scale = self.quantise(errors)
        total = (integers * self._y).sum(axis=-1, dtype=np.float64, keepdims=True)
        scale = self.output.scale
        below = (integers - total * scale) * self._y
        return ((below * (error_scale * scale * float(self._beta))).astype(np.float32),)
