# SPDX-License-Identifier: Apache-2.0
"""What a `.tflite` consists of, tensors and operators, and how they are read from its tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError
from fedlearn.model import schema
from fedlearn.model.flatbuffer import Table
from fedlearn.model.schema import (
    BufferSlot,
    ModelSlot,
    OperatorCodeSlot,
    OperatorSlot,
    QuantizationSlot,
    SubGraphSlot,
    TensorSlot,
)
from fedlearn.text import clean

# The schema counts tensors in 32 bits; real int8 networks have some hundreds.
MAX_NODES = 16_384
# TFLite's kernels take at most eight dimensions.
MAX_RANK = 8
# One scale for each output channel: layers on boards have some thousand at most.
MAX_CHANNELS = 16_384
# All scales of a model: tensors may share one long vector, which would be read for each.
MAX_SCALES = 1 << 20
MAX_OPERANDS = 256
MAX_NAME_BYTES = 256


@dataclass(frozen=True, eq=False)
class Tensor:
    """One entry of the tensor table.

    `scales` (float32) and `zero_points` (int64) have one element, or one for each slice along
    `axis`. `offset` and `byte_count` are the constant's place in the file, 0 and 0 for an
    activation. `buffer` is the number of the schema's buffer that holds the constant.
    `scales_offset` and `zero_points_offset` are where the first scale (4 bytes each) and the first
    zero point (8 bytes each) lie in the file, 0 when there are none.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int64]
    axis: int
    buffer: int
    offset: int
    byte_count: int
    scales_offset: int = 0
    zero_points_offset: int = 0

    @property
    def is_constant(self) -> bool:
        """Whether the file holds the values."""
        return self.byte_count > 0

    @property
    def scale(self) -> float:
        """The only scale of a per-tensor quantised tensor, in real units per step."""
        return float(self.scales[0])

    @property
    def zero_point(self) -> int:
        """The only zero point of a per-tensor quantised tensor."""
        return int(self.zero_points[0])


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator in execution order; an input of -1 is an optional one that is absent.

    `options_type` is the type of `options` in the schema's union, 0 for none.
    """

    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options_type: int
    options: Table | None


def tensor_numbers(
    table: Table, slot: int, count: int, *, optional: bool = False
) -> tuple[int, ...]:
    """A vector of tensor numbers below `count`; with `optional` also -1 for "none"."""
    numbers = table.scalars(slot, "i", MAX_OPERANDS)
    lowest = -1 if optional else 0
    if any(not lowest <= number < count for number in numbers):
        raise ModelError("the .tflite file is corrupt: it refers to a tensor that is not there")
    return numbers


def read_operators(root: Table, subgraph: Table, tensor_count: int) -> tuple[Operator, ...]:
    """The operators of a subgraph, in execution order."""
    names = []
    for code in root.tables(ModelSlot.OPERATOR_CODES, MAX_NODES):
        number = max(
            code.scalar(OperatorCodeSlot.DEPRECATED_BUILTIN_CODE, "b"),
            code.scalar(OperatorCodeSlot.BUILTIN_CODE, "i"),
        )
        name = schema.OPERATOR_NAMES.get(number, f"BUILTIN_{number}")
        custom = code.string(OperatorCodeSlot.CUSTOM_CODE, MAX_NAME_BYTES)
        names.append(f"{name}({custom!r})" if custom else name)
    operators = []
    for index, table in enumerate(subgraph.tables(SubGraphSlot.OPERATORS, MAX_NODES)):
        code_index = table.scalar(OperatorSlot.OPCODE_INDEX, "I")
        if code_index >= len(names):
            raise ModelError("the .tflite file is corrupt: it has an operator without a code")
        operators.append(
            Operator(
                index=index,
                name=names[code_index],
                inputs=tensor_numbers(table, OperatorSlot.INPUTS, tensor_count, optional=True),
                outputs=tensor_numbers(table, OperatorSlot.OUTPUTS, tensor_count),
                options_type=table.scalar(OperatorSlot.OPTIONS_TYPE, "B"),
                options=table.table(OperatorSlot.BUILTIN_OPTIONS),
            )
        )
    return tuple(operators)


def read_tensors(data: bytes, root: Table, subgraph: Table) -> tuple[Tensor, ...]:
    """The tensors of a subgraph and where their constants are in the file."""
    buffers = [_buffer_span(data, table) for table in root.tables(ModelSlot.BUFFERS, MAX_NODES)]
    tables = subgraph.tables(SubGraphSlot.TENSORS, MAX_NODES)
    tensors: list[Tensor] = []
    scales = 0
    for index, table in enumerate(tables):
        tensors.append(_read_tensor(index, table, buffers))
        scales += len(tensors[-1].scales)
        if scales > MAX_SCALES:
            raise ModelError(f"the model has more than {MAX_SCALES} quantisation scales")
    return tuple(tensors)


def _buffer_span(data: bytes, table: Table) -> tuple[int, int]:
    """Offset and length of a buffer's bytes in the file."""
    offset, size = table.vector(BufferSlot.DATA, 1)
    far = table.scalar(BufferSlot.OFFSET, "Q")
    if not size and far > 1:  # 0 and 1 mean "not there" in the schema
        offset, size = far, table.scalar(BufferSlot.SIZE, "Q")
        if offset + size > len(data):
            raise ModelError("the .tflite file is truncated: a buffer lies behind its end")
    return offset, size


def _read_tensor(index: int, table: Table, buffers: list[tuple[int, int]]) -> Tensor:
    shape = table.scalars(TensorSlot.SHAPE, "i", MAX_RANK)
    code = table.scalar(TensorSlot.TYPE, "b")
    dtype = schema.TENSOR_TYPES.get(code, f"type{code}")
    number = table.scalar(TensorSlot.BUFFER, "I")
    if number >= len(buffers) or any(size < 0 for size in shape):
        raise ModelError(f"the .tflite file is corrupt: tensor {index} has no valid shape or data")
    offset, byte_count = buffers[number]
    quantisation = table.table(TensorSlot.QUANTIZATION)
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis = scales_offset = zero_points_offset = 0
    if quantisation is not None:
        scales_offset, _ = quantisation.vector(QuantizationSlot.SCALE, 4)
        zero_points_offset, _ = quantisation.vector(QuantizationSlot.ZERO_POINT, 8)
        scales = quantisation.scalars(QuantizationSlot.SCALE, "f", MAX_CHANNELS)
        zero_points = quantisation.scalars(QuantizationSlot.ZERO_POINT, "q", MAX_CHANNELS)
        axis = quantisation.scalar(QuantizationSlot.QUANTIZED_DIMENSION, "i")
    return Tensor(
        index=index,
        # Names stand in messages, which are one line.
        name=clean(table.string(TensorSlot.NAME, MAX_NAME_BYTES), MAX_NAME_BYTES),
        shape=shape,
        dtype=dtype,
        scales=np.array(scales, np.float32),
        zero_points=np.array(zero_points, np.int64),
        axis=axis,
        buffer=number,
        offset=offset,
        byte_count=byte_count,
        scales_offset=scales_offset,
        zero_points_offset=zero_points_offset,
    )
