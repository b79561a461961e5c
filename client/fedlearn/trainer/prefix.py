# SPDX-License-Identifier: Apache-2.0
"""The frozen part of a model, before its tail.

It is run once before training: every epoch on its features costs only the tail. Where the trainer
knows all of its operators it runs them itself, in the rounding that all devices share, since
runtimes differ in an output of some thousand; else the interpreter runs it, and `unpinned` says
why.
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
    """What makes the features of samples: int8 values of the tensors that the tail takes.

    `unpinned` says why the features are those of this machine's runtime; it is empty where they
    have the same bits on every machine.
    """

    def __init__(
        self, model: Model, entries: Sequence[int], inputs: NDArray[np.int8], *, batch: int
    ) -> None:
        """`entries` are the numbers of the tensors that the tail takes.

        Layers of our own must show on `inputs`, samples (N, ...) of the model's input, that they
        are what the interpreter computes. No more than `batch` samples are in memory at a time,
        beside their features.
        """
        self._model, self._entries = model, tuple(entries)
        self._made = [number for number in entries if number != model.entry]
        self._section: Section | None = None
        self._block, self.unpinned = batch, ""
        if not self._made:
            return
        try:
            section = Section(model, leading(model, self._made))
            largest = max(layer.values() for layer in section.layers)
            self._block = min(max(_BLOCK // largest, 1), batch)
            prove(section, model, inputs, batch=self._block)
        except (UnsupportedOperatorError, ModelError, TrainerError) as error:
            self.unpinned = f"the interpreter runs the frozen part, since {error.message}"
        else:
            self._section = section

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
