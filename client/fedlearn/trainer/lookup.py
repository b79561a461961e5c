# SPDX-License-Identifier: Apache-2.0
"""Operators whose output depends on one byte, or on two: a table holds every answer.

The arithmetic of TFLite's portable code, in whatever integers and steps it takes, runs once for
each of the 256 or 65,536 cases when the layer is made. After that a forward pass is a lookup.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator
from fedlearn.runtime import has_vectors
from fedlearn.trainer.fixed_point import Integers
from fedlearn.trainer.layer import Array, Layer, clamp
from fedlearn.trainer.requantisation import Arithmetic
from fedlearn.trainer.runs import remainder

_BYTES = 256
# Of a table that are made at a time.
_ROWS = 16


class LookupLayer(Layer):
    """What they share: the table, the clamp, where the clamp holds."""

    # Whether TFLite has vector code for the operator that does not always do as its portable code.
    has_vector_code = False
    pinned = Arithmetic.TWICE_AWAY
    kept = ("_open", "_operands", "_y")

    def __init__(self, model: Model, operator: Operator) -> None:
        super().__init__(model, operator)
        if len(self.inputs) != len(operator.inputs):
            raise ModelError(f"operator {operator.index} ({operator.name}): too many inputs")
        self._check()
        self.lowest, self.highest = clamp(operator, self.output)
        # A centred operand and this is its row or column of the table: 0..255.
        self._lowest_bytes = [np.float32(128 + tensor.zero_point) for tensor in self.inputs]
        self._table = self._answers()
        np.clip(self._table, self.lowest, self.highest, out=self._table)
        self.choose(self.arithmetics()[0])

    def _check(self) -> None:
        if self.input.shape[1:] != self.output.shape[1:]:
            raise ModelError(
                f"operator {self.operator.index} ({self.operator.name}): "
                f"{self.input.shape} becomes {self.output.shape}"
            )

    def arithmetics(self) -> tuple[Arithmetic, ...]:
        """The codes may differ in so few outputs that the build says more than some samples."""
        portable, vectors = Arithmetic.TWICE_AWAY, Arithmetic.TWICE_VECTORS
        if not self.has_vector_code:
            return (portable,)
        return (vectors, portable) if has_vectors() else (portable, vectors)

    def choose(self, arithmetic: Arithmetic) -> None:
        """Compute as a kernel does that rounds so."""
        if arithmetic not in self.arithmetics():
            super().choose(arithmetic)
        # Where in a sample vector code is at work; None: nowhere.
        self._vectors: NDArray[np.bool_] | None = None
        if arithmetic is Arithmetic.TWICE_VECTORS:
            self._vectors = ~remainder(*self._runs(), self.output.shape[1:])[0]

    def _answers(self) -> Array:
        """The portable code's output for all cases, not yet clamped.

        In few rows at a time: its integers have 64 bits.
        """
        first, *others = self._cases()
        answers = np.empty((len(first), _BYTES if others else 1), np.float32)
        for start in range(0, len(first), _ROWS):
            rows = slice(start, start + _ROWS)
            answers[rows] = self._portable(first[rows], *others).reshape(-1, answers.shape[1])
        return answers.ravel()

    def _cases(self) -> tuple[Integers, ...]:
        """Every byte as an operand, centred; two operands broadcast to all pairs."""
        values = np.arange(-128, 128)
        return np.ix_(*(values - tensor.zero_point for tensor in self.inputs))

    def _in_vectors(self, places: NDArray[np.intp]) -> Integers:
        """What vector code makes of these cases; only the self-test asks, so there is no table."""
        operands = np.unravel_index(places, (_BYTES,) * len(self.inputs))
        centred = (
            operand - int(lowest)
            for operand, lowest in zip(operands, self._lowest_bytes, strict=True)
        )
        return np.clip(self._vector(*centred), self.lowest, self.highest)

    @abstractmethod
    def _portable(self, *operands: Integers) -> Integers:
        """The output for centred operands as TFLite's portable code has it, not yet clamped."""

    def _vector(self, *operands: Integers) -> Integers:
        """The same in vector code; only where the layer has vector code."""
        raise NotImplementedError

    def _runs(self) -> tuple[int, int]:
        """Length of the runs that the vector code is given, and values that it takes at a time."""
        raise NotImplementedError

    def forward(self, *inputs: Array) -> Array:
        """The operator as the runtime computes it, bit by bit."""
        index = inputs[0] + self._lowest_bytes[0]
        for x, lowest in zip(inputs[1:], self._lowest_bytes[1:], strict=True):
            index = index * np.float32(_BYTES) + (x + lowest)
        places = index.astype(np.intp)
        if self.watch is not None:
            self.report(self._answers()[places])
        y = self._table[places]
        if self._vectors is not None:
            for sample, cases in zip(y, places, strict=True):
                sample[self._vectors] = self._in_vectors(cases[self._vectors])
        self._open = (y > self.lowest) & (y < self.highest)
        return y

    def backward(self, errors: Array, wanted: tuple[bool, ...]) -> tuple[Array | None, ...]:
        """For one input whose real value passes as it is, unless the clamp holds it."""
        return (errors * self._open if wanted[0] else None,)
