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
from fedlearn.wire.messages import MAX_MODEL_BYTES

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

_CONVERT_HINT = (
    "convert it with full integer quantisation: optimizations=[DEFAULT], a representative data "
    "set, supported_ops=[TFLITE_BUILTINS_INT8], inference_input_type=inference_output_type=int8"
)
# Operators that multiply with weights: whether their input is int8 tells a fully-int8 model from a
# dynamic-range one (int8 weights, float activations).
_WEIGHT_OPERATORS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")


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
    """One operator in execution order; an input of -1 is an optional one that is absent."""

    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Table | None


@dataclass(frozen=True, eq=False)
class Model:
    """A parsed `.tflite`. `data` is the file; the rest says what stands where in it."""

    data: bytes
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
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
        subgraphs = root.tables(ModelSlot.SUBGRAPHS, MAX_NODES)
        if len(subgraphs) != 1:
            raise ModelError(
                f"the model has {len(subgraphs)} subgraphs",
                hint="fedlearn trains models with exactly one, without control flow",
            )
        subgraph = subgraphs[0]
        tensors = _read_tensors(data, root, subgraph)
        model = cls(
            data=data,
            tensors=tensors,
            operators=_read_operators(root, subgraph, len(tensors)),
            inputs=_tensor_numbers(subgraph, SubGraphSlot.INPUTS, len(tensors)),
            outputs=_tensor_numbers(subgraph, SubGraphSlot.OUTPUTS, len(tensors)),
            _subgraph=subgraph,
        )
        _require_fully_int8(model)
        return model

    @property
    def entry(self) -> int:
        """The int8 tensor that a sample goes into."""
        return self.inputs[0]

    @property
    def exit_operator(self) -> int:
        """The operator that makes the int8 answer."""
        return len(self.operators) - 1

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
        """The file shortened so that the tensors `outputs` are its only outputs.

        The operator that makes the last of them becomes the last one. Their numbers are written
        behind the end of the file, so every runtime reads the result.
        """
        makers = {number: op.index for op in self.operators for number in op.outputs}
        missing = [number for number in outputs if number not in makers]
        if missing or not outputs:
            raise ValueError(f"no operator makes tensor {missing}")
        data = bytearray(self.data)
        operators_at, _ = self._subgraph.vector(SubGraphSlot.OPERATORS, 4)
        _write_u32(data, operators_at - 4, max(makers[number] for number in outputs) + 1)
        data.extend(bytes(-len(data) % 4))
        field = self._subgraph.scalar_offset(SubGraphSlot.OUTPUTS)
        _write_u32(data, field, len(data) - field)
        for number in (len(outputs), *outputs):
            data.extend(number.to_bytes(4, "little"))
        return bytes(data)

    def is_shared(self, index: int) -> bool:
        """Whether a constant serves more than one operator, through one tensor or several."""
        buffer = self.tensors[index].buffer
        uses = [number for operator in self.operators for number in operator.inputs if number >= 0]
        return sum(self.tensors[number].buffer == buffer for number in uses) > 1


def _write_u32(data: bytearray, offset: int, value: int) -> None:
    data[offset : offset + 4] = value.to_bytes(4, "little")


def _tensor_numbers(
    table: Table, slot: int, count: int, *, optional: bool = False
) -> tuple[int, ...]:
    numbers = table.scalars(slot, "i", MAX_OPERANDS)
    lowest = -1 if optional else 0
    if any(not lowest <= number < count for number in numbers):
        raise ModelError("the .tflite file is corrupt: it refers to a tensor that is not there")
    return numbers


def _read_operators(root: Table, subgraph: Table, tensor_count: int) -> tuple[Operator, ...]:
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
                inputs=_tensor_numbers(table, OperatorSlot.INPUTS, tensor_count, optional=True),
                outputs=_tensor_numbers(table, OperatorSlot.OUTPUTS, tensor_count),
                options=table.table(OperatorSlot.BUILTIN_OPTIONS),
            )
        )
    return tuple(operators)


def _read_tensors(data: bytes, root: Table, subgraph: Table) -> tuple[Tensor, ...]:
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
    if dtype in {"int8", "int32"} and byte_count:
        expected = prod(shape) * (4 if dtype == "int32" else 1)
        if expected != byte_count:
            raise ModelError(
                f"the .tflite file is corrupt: tensor {index} has {byte_count} bytes, "
                f"its shape {shape} needs {expected}"
            )
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
    if dtype == "int8" and scales:
        _check_quantisation(index, shape, scales, zero_points, axis)
    return Tensor(
        index=index,
        name=table.string(TensorSlot.NAME, MAX_NAME_BYTES),
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


def _check_quantisation(
    index: int,
    shape: tuple[int, ...],
    scales: tuple[float, ...],
    zero_points: tuple[int, ...],
    axis: int,
) -> None:
    per_channel = len(scales) > 1
    slices = shape[axis] if per_channel and 0 <= axis < len(shape) else 1
    if (
        len(scales) != slices
        or len(zero_points) != len(scales)
        or not all(0 < scale < float("inf") for scale in scales)
        or not all(-128 <= zero <= 127 for zero in zero_points)
    ):
        raise ModelError(f"the .tflite file is corrupt: tensor {index} has no valid quantisation")


def _require_fully_int8(model: Model) -> None:
    if len(model.inputs) != 1 or len(model.outputs) != 1 or not model.operators:
        raise ModelError(
            f"the model has {len(model.inputs)} inputs, {len(model.outputs)} outputs and "
            f"{len(model.operators)} operators",
            hint="fedlearn trains models with one input and one output",
        )
    for operator in model.operators:
        if operator.name in _WEIGHT_OPERATORS and len(operator.inputs) > 1:
            data, weight = (model.tensors[number] for number in operator.inputs[:2])
            if data.dtype == "float32":
                kind = "dynamic-range" if weight.dtype == "int8" else "float"
                raise ModelError(
                    f"this is a {kind} model, not a fully-int8 one", hint=_CONVERT_HINT
                )
    for number in (*model.inputs, *model.outputs):
        tensor = model.tensors[number]
        if tensor.dtype != "int8" or len(tensor.scales) != 1:
            raise ModelError(
                f"input or output {tensor.name!r} is {tensor.dtype}, not quantised int8",
                hint=_CONVERT_HINT,
            )
