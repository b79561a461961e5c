# SPDX-License-Identifier: Apache-2.0
"""A fully-int8 `.tflite` file, read without TensorFlow and patched in place.

The file is the model: weights are byte ranges of it. New weights are written over the old ones, so
length, offsets and everything that fedlearn does not understand stay as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError
from fedlearn.model import schema
from fedlearn.model.edges import Edges, find_edges
from fedlearn.model.flatbuffer import Table
from fedlearn.model.graph import (
    MAX_NODES,
    Operator,
    Tensor,
    read_operators,
    read_tensors,
    tensor_numbers,
)
from fedlearn.model.schema import ModelSlot, SubGraphSlot
from fedlearn.model.structure import verify
from fedlearn.model.validate import validate
from fedlearn.wire.messages import MAX_MODEL_BYTES


@dataclass(frozen=True, eq=False)
class Model:
    """A parsed `.tflite`. `data` is the file; the rest says what stands where in it."""

    data: bytes
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    edges: Edges
    _subgraph: Table

    @classmethod
    def parse(cls, data: bytes) -> Model:
        """Read a file's bytes.

        Raises ModelError when they are no `.tflite`, are damaged, or hold a model that is not
        fully int8; the message says which.
        """
        if len(data) > MAX_MODEL_BYTES:
            raise ModelError(
                f"the model has {len(data)} bytes, above the limit of {MAX_MODEL_BYTES}"
            )
        if len(data) < 8 or data[4:8] != schema.FILE_IDENTIFIER:
            raise ModelError(
                "this is no .tflite file (the identifier TFL3 is missing)",
                hint="give the file that the TFLite converter wrote",
            )
        root = Table.root(data)
        version = root.scalar(ModelSlot.VERSION, "I")
        if version != schema.SCHEMA_VERSION:
            raise ModelError(f"schema version {version} of .tflite is not supported, only 3")
        verify(data)
        subgraphs = root.tables(ModelSlot.SUBGRAPHS, MAX_NODES)
        if len(subgraphs) != 1:
            raise ModelError(
                f"the model has {len(subgraphs)} subgraphs",
                hint="fedlearn trains models with exactly one, without control flow",
            )
        subgraph = subgraphs[0]
        tensors = read_tensors(data, root, subgraph)
        operators = read_operators(root, subgraph, len(tensors))
        inputs = tensor_numbers(subgraph, SubGraphSlot.INPUTS, len(tensors))
        outputs = tensor_numbers(subgraph, SubGraphSlot.OUTPUTS, len(tensors))
        edges = find_edges(tensors, operators, inputs, outputs)
        validate(data, root, tensors, operators, inputs)
        return cls(data, tensors, operators, inputs, outputs, edges, subgraph)

    @property
    def entry(self) -> int:
        """The int8 tensor that a sample goes into: the input, or what a QUANTIZE makes of it."""
        return self.edges.entry

    @property
    def exit(self) -> int:
        """The int8 tensor with the answer: the output, or what a DEQUANTIZE makes it of."""
        return self.edges.exit

    @property
    def exit_operator(self) -> int:
        """The operator that makes the int8 answer."""
        return self.edges.exit_operator

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the file, 32 bytes: the model's identity."""
        return hashlib.sha256(self.data).digest()

    def array(self, index: int) -> NDArray[np.int8] | NDArray[np.int32]:
        """The values of a constant tensor, a read-only view into the file of the tensor's shape.

        Raises ModelError when the tensor is no int8 or int32 constant of the right size.
        """
        tensor = self.tensors[index]
        if tensor.dtype not in {"int8", "int32"} or not tensor.is_constant:
            raise ModelError(f"tensor {index} ({tensor.name}) is no int8 or int32 constant")
        count = prod(tensor.shape)
        flat = np.frombuffer(self.data, tensor.dtype, count, offset=tensor.offset)
        return flat.reshape(tensor.shape)

    def patched(self, values: Mapping[int, NDArray[np.int8] | NDArray[np.int32]]) -> bytes:
        """The file with the constants `values` (tensor number -> array of its dtype and shape)."""
        data = bytearray(self.data)
        for index, array in values.items():
            tensor = self.tensors[index]
            if array.dtype != tensor.dtype or array.shape != tensor.shape:
                raise ValueError(
                    f"tensor {index} is {tensor.dtype}{tensor.shape}, "
                    f"not {array.dtype}{array.shape}"
                )
            data[tensor.offset : tensor.offset + tensor.byte_count] = array.tobytes()
        return bytes(data)

    def cut(self, outputs: Sequence[int]) -> bytes:
        """The file shortened so that `entry` is its only input and `outputs` are its outputs.

        The operator that makes the last of them becomes the last one, and a QUANTIZE before
        `entry` goes. The new tensor numbers are written behind the end of the file, so every
        runtime reads the result.
        """
        makers = {
            number: operator.index
            for operator in self.operators
            if operator.index != self.edges.quantize
            for number in operator.outputs
        }
        missing = [number for number in outputs if number not in makers]
        if missing or not outputs:
            raise ValueError(f"no operator makes tensor {missing}")
        data = bytearray(self.data)
        data.extend(bytes(-len(data) % 4))
        self._keep_operators(data, max(makers[number] for number in outputs) + 1)
        for slot, numbers in (
            (SubGraphSlot.INPUTS, (self.entry,)),
            (SubGraphSlot.OUTPUTS, outputs),
        ):
            field = self._subgraph.scalar_offset(slot)
            _write_u32(data, field, len(data) - field)
            for number in (len(numbers), *numbers):
                data.extend(number.to_bytes(4, "little"))
        return bytes(data)

    def _keep_operators(self, data: bytearray, count: int) -> None:
        """Shorten the operators to the first `count`, without the QUANTIZE at the float input."""
        start, _ = self._subgraph.vector(SubGraphSlot.OPERATORS, 4)
        drop = self.edges.quantize
        if drop is not None and drop < count:
            count -= 1
            for at in range(start + 4 * drop, start + 4 * count, 4):
                # An element counts from its own place, and moves down: its offset grows by as much
                # as it moves, so it never passes its table and stays positive.
                _write_u32(data, at, int.from_bytes(data[at + 4 : at + 8], "little") + 4)
        _write_u32(data, start - 4, count)

    def is_shared(self, index: int) -> bool:
        """Whether a constant serves more than one operator, through one tensor or several."""
        buffer = self.tensors[index].buffer
        uses = [number for operator in self.operators for number in operator.inputs if number >= 0]
        return sum(self.tensors[number].buffer == buffer for number in uses) > 1


def _write_u32(data: bytearray, offset: int, value: int) -> None:
    data[offset : offset + 4] = value.to_bytes(4, "little")
