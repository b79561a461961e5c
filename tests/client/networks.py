# SPDX-License-Identifier: Apache-2.0
"""Small int8 networks as `.tflite` files, written by an independent library.

The package `tflite` holds the schema's own generated code; nothing here uses fedlearn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import tflite
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Network:
    """Collects tensors and operators, then writes them as one file."""

    tensors: list[dict[str, Any]] = field(default_factory=list)
    operators: list[dict[str, Any]] = field(default_factory=list)
    buffers: list[bytes] = field(default_factory=lambda: [b""])
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def tensor(
        self,
        shape: tuple[int, ...],
        dtype: int = tflite.TensorType.INT8,
        *,
        scales: Any = (),
        zeros: Any = (0,),
        axis: int = 0,
        data: Array | None = None,
        buffer: int | None = None,
    ) -> int:
        """Add a tensor; returns its number."""
        if data is not None:
            self.buffers.append(data.tobytes())
            buffer = len(self.buffers) - 1
        scales = np.atleast_1d(np.asarray(scales, np.float32))
        self.tensors.append(
            {
                "shape": shape,
                "dtype": dtype,
                "scales": scales,
                "zeros": np.broadcast_to(np.asarray(zeros, np.int64), scales.shape),
                "axis": axis,
                "buffer": buffer or 0,
            }
        )
        return len(self.tensors) - 1

    def operator(
        self, code: int, inputs: list[int], outputs: list[int], options: Any = None
    ) -> None:
        """Add an operator; `options` is (union type, function that writes them)."""
        self.operators.append(
            {"code": code, "inputs": inputs, "outputs": outputs, "options": options}
        )

    def write(self) -> bytes:
        """The file."""
        builder = flatbuffers.Builder(1024)
        buffers = [self._buffer(builder, data) for data in self.buffers]
        tensors = [self._tensor(builder, number, t) for number, t in enumerate(self.tensors)]
        codes = sorted({operator["code"] for operator in self.operators})
        operators = [self._operator(builder, codes, operator) for operator in self.operators]
        code_tables = [self._code(builder, code) for code in codes]
        inputs = _ints(builder, tflite.SubGraphStartInputsVector, self.inputs)
        outputs = _ints(builder, tflite.SubGraphStartOutputsVector, self.outputs)
        tensor_vector = _tables(builder, tflite.SubGraphStartTensorsVector, tensors)
        operator_vector = _tables(builder, tflite.SubGraphStartOperatorsVector, operators)
        tflite.SubGraphStart(builder)
        tflite.SubGraphAddTensors(builder, tensor_vector)
        tflite.SubGraphAddInputs(builder, inputs)
        tflite.SubGraphAddOutputs(builder, outputs)
        tflite.SubGraphAddOperators(builder, operator_vector)
        subgraph = tflite.SubGraphEnd(builder)
        subgraphs = _tables(builder, tflite.ModelStartSubgraphsVector, [subgraph])
        code_vector = _tables(builder, tflite.ModelStartOperatorCodesVector, code_tables)
        buffer_vector = _tables(builder, tflite.ModelStartBuffersVector, buffers)
        tflite.ModelStart(builder)
        tflite.ModelAddVersion(builder, 3)
        tflite.ModelAddOperatorCodes(builder, code_vector)
        tflite.ModelAddSubgraphs(builder, subgraphs)
        tflite.ModelAddBuffers(builder, buffer_vector)
        builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _buffer(self, builder: flatbuffers.Builder, data: bytes) -> int:
        vector = None
        if data:
            builder.StartVector(1, len(data), 16)  # the schema's force_align of Buffer.data
            builder.head -= len(data)
            builder.Bytes[builder.head : builder.head + len(data)] = data
            vector = builder.EndVector()
        tflite.BufferStart(builder)
        if vector is not None:
            tflite.BufferAddData(builder, vector)
        return int(tflite.BufferEnd(builder))

    def _tensor(self, builder: flatbuffers.Builder, number: int, entry: dict[str, Any]) -> int:
        name = builder.CreateString(f"tensor{number}")
        shape = _ints(builder, tflite.TensorStartShapeVector, entry["shape"])
        scales = builder.CreateNumpyVector(entry["scales"])
        zeros = builder.CreateNumpyVector(np.ascontiguousarray(entry["zeros"]))
        tflite.QuantizationParametersStart(builder)
        if len(entry["scales"]):
            tflite.QuantizationParametersAddScale(builder, scales)
            tflite.QuantizationParametersAddZeroPoint(builder, zeros)
        tflite.QuantizationParametersAddQuantizedDimension(builder, entry["axis"])
        quantisation = tflite.QuantizationParametersEnd(builder)
        tflite.TensorStart(builder)
        tflite.TensorAddShape(builder, shape)
        tflite.TensorAddType(builder, entry["dtype"])
        tflite.TensorAddBuffer(builder, entry["buffer"])
        tflite.TensorAddName(builder, name)
        tflite.TensorAddQuantization(builder, quantisation)
        return int(tflite.TensorEnd(builder))

    def _operator(
        self, builder: flatbuffers.Builder, codes: list[int], entry: dict[str, Any]
    ) -> int:
        options = entry["options"][1](builder) if entry["options"] else None
        inputs = _ints(builder, tflite.OperatorStartInputsVector, entry["inputs"])
        outputs = _ints(builder, tflite.OperatorStartOutputsVector, entry["outputs"])
        tflite.OperatorStart(builder)
        tflite.OperatorAddOpcodeIndex(builder, codes.index(entry["code"]))
        tflite.OperatorAddInputs(builder, inputs)
        tflite.OperatorAddOutputs(builder, outputs)
        if options is not None:
            tflite.OperatorAddBuiltinOptionsType(builder, entry["options"][0])
            tflite.OperatorAddBuiltinOptions(builder, options)
        return int(tflite.OperatorEnd(builder))

    def _code(self, builder: flatbuffers.Builder, code: int) -> int:
        tflite.OperatorCodeStart(builder)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, min(code, 127))
        tflite.OperatorCodeAddVersion(builder, {3: 3, 4: 3, 9: 4, 130: 2}.get(code, 1))
        tflite.OperatorCodeAddBuiltinCode(builder, code)
        return int(tflite.OperatorCodeEnd(builder))


def _ints(builder: flatbuffers.Builder, start: Any, values: Any) -> int:
    start(builder, len(values))
    for value in reversed(values):
        builder.PrependInt32(value)
    return int(builder.EndVector())


def _tables(builder: flatbuffers.Builder, start: Any, tables: list[int]) -> int:
    start(builder, len(tables))
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())


def convolution(
    *, padding: int, stride: tuple[int, int], dilation: tuple[int, int], activation: int
) -> tuple[int, Any]:
    """Conv2DOptions."""

    def write(builder: flatbuffers.Builder) -> int:
        tflite.Conv2DOptionsStart(builder)
        tflite.Conv2DOptionsAddPadding(builder, padding)
        tflite.Conv2DOptionsAddStrideH(builder, stride[0])
        tflite.Conv2DOptionsAddStrideW(builder, stride[1])
        tflite.Conv2DOptionsAddDilationHFactor(builder, dilation[0])
        tflite.Conv2DOptionsAddDilationWFactor(builder, dilation[1])
        tflite.Conv2DOptionsAddFusedActivationFunction(builder, activation)
        return int(tflite.Conv2DOptionsEnd(builder))

    return tflite.BuiltinOptions.Conv2DOptions, write


def depthwise(
    *,
    padding: int,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    activation: int,
    multiplier: int,
) -> tuple[int, Any]:
    """DepthwiseConv2DOptions."""

    def write(builder: flatbuffers.Builder) -> int:
        tflite.DepthwiseConv2DOptionsStart(builder)
        tflite.DepthwiseConv2DOptionsAddPadding(builder, padding)
        tflite.DepthwiseConv2DOptionsAddStrideH(builder, stride[0])
        tflite.DepthwiseConv2DOptionsAddStrideW(builder, stride[1])
        tflite.DepthwiseConv2DOptionsAddDepthMultiplier(builder, multiplier)
        tflite.DepthwiseConv2DOptionsAddDilationHFactor(builder, dilation[0])
        tflite.DepthwiseConv2DOptionsAddDilationWFactor(builder, dilation[1])
        tflite.DepthwiseConv2DOptionsAddFusedActivationFunction(builder, activation)
        return int(tflite.DepthwiseConv2DOptionsEnd(builder))

    return tflite.BuiltinOptions.DepthwiseConv2DOptions, write


def fully_connected(*, activation: int) -> tuple[int, Any]:
    """FullyConnectedOptions."""

    def write(builder: flatbuffers.Builder) -> int:
        tflite.FullyConnectedOptionsStart(builder)
        tflite.FullyConnectedOptionsAddFusedActivationFunction(builder, activation)
        return int(tflite.FullyConnectedOptionsEnd(builder))

    return tflite.BuiltinOptions.FullyConnectedOptions, write


def softmax(beta: float = 1.0) -> tuple[int, Any]:
    """SoftmaxOptions."""

    def write(builder: flatbuffers.Builder) -> int:
        tflite.SoftmaxOptionsStart(builder)
        tflite.SoftmaxOptionsAddBeta(builder, beta)
        return int(tflite.SoftmaxOptionsEnd(builder))

    return tflite.BuiltinOptions.SoftmaxOptions, write


def add_float_edges(network: Network, *, at_input: bool = True, at_output: bool = True) -> None:
    """Float32 in and out of an int8 network, as TFLite's converter leaves it by default."""
    if at_input:
        (inner,) = network.inputs
        outer = network.tensor(network.tensors[inner]["shape"], tflite.TensorType.FLOAT32)
        network.operator(tflite.BuiltinOperator.QUANTIZE, [outer], [inner])
        network.operators.insert(0, network.operators.pop())
        network.inputs = [outer]
    if at_output:
        (inner,) = network.outputs
        outer = network.tensor(network.tensors[inner]["shape"], tflite.TensorType.FLOAT32)
        network.operator(tflite.BuiltinOperator.DEQUANTIZE, [inner], [outer])
        network.outputs = [outer]


def weights(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random int8 weights in -127..127."""
    return rng.integers(-127, 128, shape).astype(np.int8)


def layer(
    code: int,
    rng: np.random.Generator,
    *,
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    options: tuple[int, Any],
    terms: int,
    channel_axis: int,
    per_channel: bool = True,
    bias: bool = True,
    input_zero: int = -128,
    output_zero: int = -3,
    network: Network | None = None,
    source: int | None = None,
) -> Network:
    """One layer with random weights whose outputs use the int8 range, appended to `network`."""
    network = network or Network()
    channels = weight_shape[channel_axis]
    if source is None:
        source = network.tensor(input_shape, scales=rng.uniform(0.002, 0.05), zeros=input_zero)
        network.inputs = [source]
    input_scale = float(network.tensors[source]["scales"][0])
    scales = rng.uniform(0.001, 0.02, channels if per_channel else 1).astype(np.float32)
    weight = network.tensor(
        weight_shape, scales=scales, axis=channel_axis, data=weights(rng, weight_shape)
    )
    numbers = [source, weight]
    if bias:
        values = rng.integers(-3000, 3000, channels).astype(np.int32)
        numbers.append(
            network.tensor(
                (channels,), tflite.TensorType.INT32, scales=input_scale * scales, data=values
            )
        )
    elif code == tflite.BuiltinOperator.FULLY_CONNECTED:
        numbers.append(-1)
    else:
        raise ValueError("the convolutions of the runtime want a bias")
    # Standard deviation of a sum of `terms` products, over a third of the int8 range.
    spread = input_scale * float(scales.mean()) * np.sqrt(terms) * 74 * 74 * 2 / 40
    output = network.tensor(output_shape, scales=spread, zeros=output_zero)
    network.operator(code, numbers, [output], options)
    network.outputs = [output]
    return network


def pool(
    *, padding: int, stride: tuple[int, int], kernel: tuple[int, int], activation: int
) -> tuple[int, Any]:
    """Pool2DOptions."""

    def write(builder: flatbuffers.Builder) -> int:
        tflite.Pool2DOptionsStart(builder)
        tflite.Pool2DOptionsAddPadding(builder, padding)
        tflite.Pool2DOptionsAddStrideH(builder, stride[0])
        tflite.Pool2DOptionsAddStrideW(builder, stride[1])
        tflite.Pool2DOptionsAddFilterHeight(builder, kernel[0])
        tflite.Pool2DOptionsAddFilterWidth(builder, kernel[1])
        tflite.Pool2DOptionsAddFusedActivationFunction(builder, activation)
        return int(tflite.Pool2DOptionsEnd(builder))

    return tflite.BuiltinOptions.Pool2DOptions, write


def reducer(*, keep_dims: bool) -> tuple[int, Any]:
    """ReducerOptions."""

    def write(builder: flatbuffers.Builder) -> int:
        tflite.ReducerOptionsStart(builder)
        tflite.ReducerOptionsAddKeepDims(builder, keep_dims)
        return int(tflite.ReducerOptionsEnd(builder))

    return tflite.BuiltinOptions.ReducerOptions, write


def shaping(
    code: int,
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
    *,
    options: tuple[int, Any] | None = None,
    constant: Array | None = None,
    scales: tuple[float, float] = (0.05, 0.05),
    zeros: tuple[int, int] = (0, 0),
) -> Network:
    """One operator without weights, from one int8 tensor to one; `constant` says how it shapes."""
    network = Network()
    source = network.tensor(input_shape, scales=scales[0], zeros=zeros[0])
    numbers = [source]
    if constant is not None:
        values = np.asarray(constant, np.int32)
        numbers.append(network.tensor(values.shape, tflite.TensorType.INT32, data=values))
    output = network.tensor(output_shape, scales=scales[1], zeros=zeros[1])
    network.operator(code, numbers, [output], options)
    network.inputs, network.outputs = [source], [output]
    return network


def _options(kind: int, name: str, **fields: float) -> tuple[int, Any]:
    """An options table with these scalar fields, by the names of the schema's generated code."""

    def write(builder: flatbuffers.Builder) -> int:
        getattr(tflite, f"{name}Start")(builder)
        for field_name, value in fields.items():
            getattr(tflite, f"{name}Add{field_name}")(builder, value)
        return int(getattr(tflite, f"{name}End")(builder))

    return kind, write


def add(*, activation: int) -> tuple[int, Any]:
    """AddOptions."""
    kind = tflite.BuiltinOptions.AddOptions
    return _options(kind, "AddOptions", FusedActivationFunction=activation)


def multiplication(*, activation: int) -> tuple[int, Any]:
    """MulOptions."""
    kind = tflite.BuiltinOptions.MulOptions
    return _options(kind, "MulOptions", FusedActivationFunction=activation)


def concatenation(*, axis: int, activation: int = 0) -> tuple[int, Any]:
    """ConcatenationOptions."""
    kind = tflite.BuiltinOptions.ConcatenationOptions
    return _options(kind, "ConcatenationOptions", Axis=axis, FusedActivationFunction=activation)


@dataclass(frozen=True)
class Operand:
    """An int8 tensor that a network splits off its input; a constant where it has values."""

    shape: tuple[int, ...]
    scale: float
    zero: int
    values: Array | None = None


def joined(code: int, operands: list[Operand], output: Operand, options: Any = None) -> Network:
    """One operator whose activations come from one input, (1, sum of their sizes).

    SPLIT_V and RESHAPE move bytes and look at no scale, so each operand can have its own. A RESHAPE
    to another scale is no model that a converter writes, but one that every runtime runs.
    """
    network = Network()
    sizes = [int(np.prod(each.shape)) for each in operands if each.values is None]
    source = network.tensor((1, sum(sizes)), scales=1.0)
    network.inputs = [source]
    pieces = [network.tensor((1, size), scales=1.0) for size in sizes]
    int32 = tflite.TensorType.INT32
    lengths = network.tensor((len(sizes),), int32, data=np.array(sizes, np.int32))
    axis = network.tensor((), int32, data=np.array(1, np.int32))
    network.operator(
        tflite.BuiltinOperator.SPLIT_V,
        [source, lengths, axis],
        pieces,
        _options(tflite.BuiltinOptions.SplitVOptions, "SplitVOptions", NumSplits=len(sizes)),
    )
    numbers, left = [], iter(pieces)
    for each in operands:
        number = network.tensor(each.shape, scales=each.scale, zeros=each.zero, data=each.values)
        numbers.append(number)
        if each.values is None:
            shape = network.tensor((len(each.shape),), int32, data=np.array(each.shape, np.int32))
            network.operator(tflite.BuiltinOperator.RESHAPE, [next(left), shape], [number])
    made = network.tensor(output.shape, scales=output.scale, zeros=output.zero)
    network.operator(code, numbers, [made], options)
    network.outputs = [made]
    return network
