# SPDX-License-Identifier: Apache-2.0
"""Sound files to damage: the real digits model and networks that the writer makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
import tflite

from fedlearn_demo.digits import MODEL_PATH
from tests.client.networks import (
    Network,
    add_float_edges,
    convolution,
    depthwise,
    fully_connected,
    layer,
    softmax,
    weights,
)

_Op = tflite.BuiltinOperator
# Scale and zero point that some operators insist on.
_GRIDS = {
    _Op.LOGISTIC: (1 / 256, -128),
    _Op.TANH: (1 / 128, 0),
    _Op.L2_NORMALIZATION: (1 / 128, 0),
}
_SAME = tflite.Padding.SAME


def files() -> list[bytes]:
    """The digits model; the trainable operators with float edges; many operators in a prefix."""
    edged = separable()
    add_float_edges(edged)
    others = [prefixed(), wide(), further()]
    return [MODEL_PATH.read_bytes(), edged.write(), *(network.write() for network in others)]


def separable() -> Network:
    """CONV_2D, DEPTHWISE_CONV_2D, RESHAPE, FULLY_CONNECTED, SOFTMAX."""
    rng = np.random.default_rng(11)
    network = _convolution(rng)
    layer(
        _Op.DEPTHWISE_CONV_2D,
        rng,
        input_shape=(1, 4, 4, 4),
        output_shape=(1, 2, 2, 8),
        weight_shape=(1, 3, 3, 8),
        options=depthwise(
            padding=_SAME, stride=(2, 2), dilation=(1, 1), activation=3, multiplier=2
        ),
        terms=9,
        channel_axis=3,
        network=network,
        source=network.outputs[0],
    )
    return _classifier(rng, network, 32)


def prefixed() -> Network:
    """Operators that stand before a tail, in branches, before FULLY_CONNECTED and SOFTMAX."""
    rng = np.random.default_rng(12)
    network = _convolution(rng)
    (hidden,) = network.outputs
    pooled = [
        _apply(network, code, [hidden], (1, 2, 2, 4), _pool())
        for code in (_Op.AVERAGE_POOL_2D, _Op.MAX_POOL_2D)
    ]
    both = _apply(network, _Op.CONCATENATION, pooled, (1, 2, 2, 8), _concatenation())
    wide = _apply(
        network, _Op.PAD, [both, _ints(network, [[0, 0], [1, 1], [0, 1], [0, 0]])], (1, 4, 3, 8)
    )
    sums = _apply(network, _Op.ADD, [wide, wide], (1, 4, 3, 8), _add())
    squashed = _apply(network, _Op.MUL, [sums, wide], (1, 4, 3, 8), _multiply())
    turned = _apply(network, _Op.TRANSPOSE, [squashed, _ints(network, [0, 2, 1, 3])], (1, 3, 4, 8))
    part = _apply(
        network,
        _Op.STRIDED_SLICE,
        [turned, *(_ints(network, each) for each in ([0, 0, 0, 0], [1, 2, 4, 8], [1, 1, 2, 1]))],
        (1, 2, 2, 8),
        _slice(),
    )
    larger = _apply(
        network,
        _Op.RESIZE_NEAREST_NEIGHBOR,
        [part, _ints(network, [4, 4])],
        (1, 4, 4, 8),
        _resize(),
    )
    mean = _apply(network, _Op.MEAN, [larger, _ints(network, [1, 2])], (1, 8), _mean())
    network.outputs = [mean]
    return _classifier(rng, network, 8)


def wide() -> Network:
    """The other operators that are checked by name, one after the other."""
    rng = np.random.default_rng(13)
    network = _convolution(rng)
    (x,) = network.outputs
    image = (1, 4, 4, 4)
    for code in (_Op.RELU, _Op.RELU6, _Op.HARD_SWISH, _Op.LOGISTIC, _Op.TANH, _Op.ABS):
        x = _apply(network, code, [x], image)
    x = _apply(network, _Op.LEAKY_RELU, [x], image, _leaky())
    slopes = network.tensor((1, 1, 4), scales=0.01, data=np.arange(4, dtype=np.int8))
    x = _apply(network, _Op.PRELU, [x, slopes], image)
    x = _apply(network, _Op.SUB, [x, network.outputs[0]], image)
    x = _apply(network, _Op.MAXIMUM, [x, network.outputs[0]], image)
    x = _apply(network, _Op.L2_NORMALIZATION, [x], image)
    x = _apply(network, _Op.SPACE_TO_DEPTH, [x], (1, 2, 2, 16), _blocks("SpaceToDepthOptions"))
    x = _apply(network, _Op.DEPTH_TO_SPACE, [x], image, _blocks("DepthToSpaceOptions"))
    corners = _ints(network, [[0, 0], [1, 1], [2, 0], [0, 0]])
    x = _apply(network, _Op.MIRROR_PAD, [x, corners], (1, 6, 6, 4), _mirror())
    starts, sizes = _ints(network, [0, 1, 0, 0]), _ints(network, [1, 4, -1, 4])
    x = _apply(network, _Op.SLICE, [x, starts, sizes], (1, 4, 6, 4))
    x = _apply(network, _Op.RESIZE_BILINEAR, [x, _ints(network, [2, 2])], (1, 2, 2, 4), _bilinear())
    grid = network.tensors[x]
    halves = [
        network.tensor((1, 2, 2, 2), scales=grid["scales"], zeros=grid["zeros"]) for _ in range(2)
    ]
    network.operator(_Op.SPLIT, [_ints(network, 3), x], halves, _split())
    x = _apply(network, _Op.PACK, halves, (1, 2, 2, 2, 2), _pack())
    x = _apply(network, _Op.REDUCE_MAX, [x, _ints(network, [-1])], (1, 2, 2, 2), _mean())
    x = _apply(network, _Op.EXPAND_DIMS, [x, _ints(network, 4)], (1, 2, 2, 2, 1))
    x = _apply(network, _Op.SQUEEZE, [x], (2, 2, 2))
    value = network.tensor(
        (), scales=grid["scales"], zeros=grid["zeros"], data=np.array(5, np.int8)
    )
    margins = _ints(network, [[0, 1], [0, 0], [0, 0]])
    x = _apply(network, _Op.PADV2, [x, margins, value], (3, 2, 2))
    network.outputs = [x]
    return _classifier(rng, network, 12)


def further() -> Network:
    """Rarer operators that are checked by name."""
    rng = np.random.default_rng(14)
    network = _convolution(rng)
    (x,) = network.outputs
    image = (1, 4, 4, 4)
    for code in (_Op.GELU, _Op.ELU):
        x = _apply(network, code, [x], image)
    blocks, edges = _ints(network, [2, 2]), _ints(network, [[0, 0], [0, 0]])
    x = _apply(network, _Op.SPACE_TO_BATCH_ND, [x, blocks, edges], (4, 2, 2, 4))
    x = _apply(network, _Op.BATCH_TO_SPACE_ND, [x, blocks, edges], image)
    grid = network.tensors[x]
    sizes = _ints(network, [2, -1])
    halves = [
        network.tensor((1, 4, 4, 2), scales=grid["scales"], zeros=grid["zeros"]) for _ in range(2)
    ]
    network.operator(
        _Op.SPLIT_V,
        [x, sizes, _ints(network, [3])],
        halves,
        _numbered("SplitVOptions", NumSplits=2),
    )
    kernel = network.tensor((4, 3, 3, 2), scales=0.01, data=weights(rng, (4, 3, 3, 2)))
    x = _apply(
        network,
        _Op.TRANSPOSE_CONV,
        [_ints(network, [1, 8, 8, 4]), kernel, halves[0]],
        (1, 8, 8, 4),
        _numbered("TransposeConvOptions", StrideW=2, StrideH=2),
    )
    network.tensors[x].update(scales=grid["scales"], zeros=grid["zeros"])
    x = _apply(
        network,
        _Op.GATHER,
        [x, _ints(network, [0, 5])],
        (1, 2, 8, 4),
        _numbered("GatherOptions", Axis=1),
    )
    x = _apply(network, _Op.REVERSE_V2, [x, _ints(network, [2])], (1, 2, 8, 4))
    flat = _apply(network, _Op.RESHAPE, [x, _ints(network, [1, 8, 8])], (1, 8, 8))
    x = _apply(
        network,
        _Op.BATCH_MATMUL,
        [flat, flat],
        (1, 8, 8),
        _numbered("BatchMatMulOptions", AdjX=0, AdjY=0),
    )
    x = _apply(network, _Op.REDUCE_MIN, [x, _ints(network, [2])], (1, 8), _mean())
    larger = network.tensor((1, 8), tflite.TensorType.BOOL)
    network.operator(_Op.GREATER, [x, x], [larger])
    x = _apply(network, _Op.SELECT_V2, [larger, x, x], (1, 8))
    network.tensors[x].update(scales=grid["scales"], zeros=grid["zeros"])
    x = _apply(network, _Op.SQUARED_DIFFERENCE, [x, x], (1, 8))
    wide_shape = _ints(network, [1, 8])
    x = _apply(network, _Op.BROADCAST_TO, [x, wide_shape], (1, 8))
    network.outputs = [x]
    return _classifier(rng, network, 8)


def _numbered(name: str, **fields: int) -> tuple[int, Any]:
    return _options(getattr(tflite.BuiltinOptions, name), name, **fields)


def _convolution(rng: np.random.Generator) -> Network:
    return layer(
        _Op.CONV_2D,
        rng,
        input_shape=(1, 8, 8, 2),
        output_shape=(1, 4, 4, 4),
        weight_shape=(4, 3, 3, 2),
        options=convolution(padding=_SAME, stride=(2, 2), dilation=(1, 1), activation=1),
        terms=18,
        channel_axis=0,
    )


def _classifier(rng: np.random.Generator, network: Network, width: int) -> Network:
    (source,) = network.outputs
    flat = _apply(network, _Op.RESHAPE, [source, _ints(network, [1, width])], (1, width))
    layer(
        _Op.FULLY_CONNECTED,
        rng,
        input_shape=(1, width),
        output_shape=(1, 5),
        weight_shape=(5, width),
        options=fully_connected(activation=0),
        terms=width,
        channel_axis=0,
        per_channel=False,
        network=network,
        source=flat,
    )
    answer = network.tensor((1, 5), scales=1 / 256, zeros=-128)
    network.operator(_Op.SOFTMAX, network.outputs, [answer], softmax())
    network.outputs = [answer]
    return network


def _apply(
    network: Network,
    code: int,
    inputs: list[int],
    shape: tuple[int, ...],
    options: tuple[int, Any] | None = None,
) -> int:
    """Add an operator whose output has the grid of its first input, or the one it must have."""
    first = network.tensors[inputs[0]]
    scale, zero = _GRIDS.get(code, (first["scales"], first["zeros"]))
    output = network.tensor(shape, scales=scale, zeros=zero)
    network.operator(code, inputs, [output], options)
    return output


def _ints(network: Network, values: Any) -> int:
    array = np.array(values, np.int32)
    return network.tensor(array.shape, tflite.TensorType.INT32, data=array)


def _options(
    kind: int, name: str, **fields: float
) -> tuple[int, Callable[[flatbuffers.Builder], int]]:
    """An options table by the names of the generated code."""

    def write(builder: flatbuffers.Builder) -> int:
        getattr(tflite, f"{name}Start")(builder)
        for field, value in fields.items():
            getattr(tflite, f"{name}Add{field}")(builder, value)
        return int(getattr(tflite, f"{name}End")(builder))

    return kind, write


def _pool() -> tuple[int, Any]:
    return _options(
        tflite.BuiltinOptions.Pool2DOptions,
        "Pool2DOptions",
        StrideW=2,
        StrideH=2,
        FilterWidth=2,
        FilterHeight=2,
    )


def _concatenation() -> tuple[int, Any]:
    return _options(tflite.BuiltinOptions.ConcatenationOptions, "ConcatenationOptions", Axis=3)


def _add() -> tuple[int, Any]:
    return _options(tflite.BuiltinOptions.AddOptions, "AddOptions", FusedActivationFunction=1)


def _multiply() -> tuple[int, Any]:
    return _options(tflite.BuiltinOptions.MulOptions, "MulOptions", FusedActivationFunction=0)


def _slice() -> tuple[int, Any]:
    return _options(tflite.BuiltinOptions.StridedSliceOptions, "StridedSliceOptions", BeginMask=0)


def _resize() -> tuple[int, Any]:
    return _options(
        tflite.BuiltinOptions.ResizeNearestNeighborOptions,
        "ResizeNearestNeighborOptions",
        HalfPixelCenters=1,
    )


def _mean() -> tuple[int, Any]:
    return _options(tflite.BuiltinOptions.ReducerOptions, "ReducerOptions", KeepDims=0)


def _leaky() -> tuple[int, Any]:
    return _options(tflite.BuiltinOptions.LeakyReluOptions, "LeakyReluOptions", Alpha=0.1)


def _blocks(name: str) -> tuple[int, Any]:
    return _options(getattr(tflite.BuiltinOptions, name), name, BlockSize=2)


def _mirror() -> tuple[int, Any]:
    return _options(tflite.BuiltinOptions.MirrorPadOptions, "MirrorPadOptions", Mode=0)


def _bilinear() -> tuple[int, Any]:
    return _options(
        tflite.BuiltinOptions.ResizeBilinearOptions, "ResizeBilinearOptions", AlignCorners=0
    )


def _split() -> tuple[int, Any]:
    return _options(tflite.BuiltinOptions.SplitOptions, "SplitOptions", NumSplits=2)


def _pack() -> tuple[int, Any]:
    return _options(tflite.BuiltinOptions.PackOptions, "PackOptions", ValuesCount=2, Axis=4)
