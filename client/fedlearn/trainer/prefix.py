# SPDX-License-Identifier: Apache-2.0
"""The frozen part of a model, before its tail.

It is run once before training: every epoch on its features costs only the tail. Where the trainer
knows all of its operators it runs them itself, in the rounding that all devices share, since
runtimes differ in an output of some thousand; else the interpreter runs it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError, TrainerError, UnsupportedOperatorError
from fedlearn.model import Model
from fedlearn.runtime import Session
from fedlearn.trainer.section import Features, Section, leading
from fedlearn.trainer.selftest import prove

# Numbers that a layer makes of a block of samples: 128 KiB, which stay near a core.
_BLOCK = 1 << 15


class Prefix:
    """What makes the features of samples: int8 values of the tensors that the tail takes."""

    def __init__(self, model: Model, entries: Sequence[int], *, batch: int) -> None:
        """`entries` are the numbers of the tensors that the tail takes.

        No more than `batch` samples are in memory at a time, beside their features.
        """
        self._model, self._entries = model, tuple(entries)
        self._made = [number for number in entries if number != model.entry]
        self._section = self._own()
        layers = self._section.layers if self._section else []
        largest = max((layer.values() for layer in layers), default=1)
        self._block = min(max(_BLOCK // largest, 1), batch)

    def _own(self) -> Section | None:
        if not self._made:
            return None
        try:
            section = Section(self._model, leading(self._model, self._made))
        except (UnsupportedOperatorError, ModelError):
            return None
        return section if set(section.entries) <= {self._model.entry} else None

    @property
    def is_pinned(self) -> bool:
        """Whether the features have the same bits on every machine."""
        return not self._made or self._section is not None

    def prove(self, inputs: NDArray[np.int8]) -> None:
        """Leave to the interpreter what cannot be shown to be what it computes."""
        if self._section is None:
            return
        try:
            prove(self._section, self._model, inputs, batch=self._block)
        except TrainerError:
            self._section = None

    def features(self, inputs: NDArray[np.int8]) -> Features:
        """The features of samples (N, ...) of the model's input, in the order of the entries."""
        computed: dict[int, NDArray[np.int8]] = {self._model.entry: inputs}
        if self._section is not None:
            computed.update(self._run(self._section, inputs))
        elif self._made:
            session = Session(self._model.cut(self._made))
            computed.update(zip(self._made, session.run_all(inputs), strict=True))
        return tuple(computed[number] for number in self._entries)

    def _run(self, section: Section, inputs: NDArray[np.int8]) -> dict[int, NDArray[np.int8]]:
        shapes = {number: self._model.tensors[number].shape[1:] for number in self._made}
        made = {number: np.empty((len(inputs), *shapes[number]), np.int8) for number in shapes}
        for start in range(0, len(inputs), self._block):
            block = slice(start, start + self._block)
            values = section.centred((inputs[block],) if section.entries else ())
            for at, layer in enumerate(section.layers):
                x = section.inputs_of(at, values)
                values[layer.output.index] = y = layer.forward(*x)
                layer.forget()
                if layer.output.index in made:
                    made[layer.output.index][block] = y + np.float32(layer.output.zero_point)
        return made
