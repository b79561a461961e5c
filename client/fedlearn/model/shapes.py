# SPDX-License-Identifier: Apache-2.0
"""The shape that each operator makes of its operands, as TFLite's kernels do it.

A function takes the operator with its tensors and returns the shape of its outputs, or raises
WrongError for operands and options from which nothing can be computed. Many a kernel does not check
them: it divides by a stride of zero, or writes behind a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from fedlearn.model.graph import MAX_RANK, Operator, Tensor
from fedlearn.model.schema import Padding

# Cells of a pool's window, which no constant of the file bounds.
MAX_WINDOW = 1 << 20

Shape = tuple[int, ...]


class WrongError(Exception):
    """What is wrong with an operator, without its name."""


@dataclass(frozen=True)
class Call:
    """An operator with its tensors at hand."""

    data: bytes
    operator: Operator
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]

    def shape(self, at: int) -> Shape:
        """Shape of an input."""
        tensor = self.inputs[at]
        if tensor is None:
            raise WrongError(f"it lacks input {at}")
        return tensor.shape

    def image(self, at: int) -> Shape:
        """Shape of an input that must have four dimensions."""
        shape = self.shape(at)
        if len(shape) != 4:
            raise WrongError(f"input {at} has {len(shape)} dimensions, not 4")
        return shape

    def ints(self, at: int) -> list[int]:
        """Values of an input that must be a constant of integers."""
        tensor = self.inputs[at] if at < len(self.inputs) else None
        if tensor is None or not tensor.is_constant or tensor.dtype not in {"int32", "int64"}:
            raise WrongError(f"input {at} is no constant of integers")
        count = prod(tensor.shape)
        return [int(v) for v in np.frombuffer(self.data, tensor.dtype, count, tensor.offset)]

    def option(self, slot: int, layout: str = "i", default: int = 0) -> int:
        """A number of the options."""
        options = self.operator.options
        return default if options is None else int(options.scalar(slot, layout, default))

    def option_list(self, slot: int) -> list[int]:
        """Numbers of the options, one for each of at most so many dimensions."""
        options = self.operator.options
        return [] if options is None else list(options.scalars(slot, "i", MAX_RANK))

    def axis(self, value: int, rank: int) -> int:
        """An axis, counted from the end where it is negative."""
        if not -rank <= value < rank:
            raise WrongError(f"axis {value} of {rank} dimensions")
        return value % rank


def same(call: Call) -> Shape:
    """As the first input."""
    return call.shape(0)


def broadcast(call: Call) -> Shape:
    """Operands of other shapes are repeated along axes of one."""
    shapes = [call.shape(at) for at in range(len(call.inputs))]
    if max(map(len, shapes)) > 4:  # some kernels abort above
        raise WrongError("more than 4 dimensions to broadcast")
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise WrongError(f"shapes {shapes} do not broadcast") from error


def select(call: Call) -> Shape:
    """SELECT_V2: all three operands broadcast, the first decides."""
    decider = call.inputs[0]
    if decider is None or decider.dtype != "bool":
        raise WrongError("its first input is not bool")
    return broadcast(call)


def broadcast_to(call: Call) -> Shape:
    """BROADCAST_TO a constant shape."""
    shape, wanted = call.shape(0), tuple(call.ints(1))
    if min(wanted, default=1) < 1 or len(wanted) > MAX_RANK:
        raise WrongError(f"a shape of {wanted}")
    try:
        made = np.broadcast_shapes(shape, wanted)
    except ValueError as error:
        raise WrongError(f"shape {shape} does not broadcast to {wanted}") from error
    return made


def reverse(call: Call) -> Shape:
    """REVERSE_V2 along one axis."""
    shape, values = call.shape(0), call.ints(1)
    if len(values) != 1:
        raise WrongError(f"axes {values}, and only one is supported")
    call.axis(values[0], len(shape))
    return shape


def added(call: Call) -> Shape:
    """ADD and SUB add in steps of 2^-20 of twice the larger scale, and abort above one step."""
    scales = [float(tensor.scales[0]) for tensor in call.inputs if tensor and len(tensor.scales)]
    output = call.outputs[0].scales
    if scales and len(output) and 2 * max(scales) >= 2.0**20 * float(output[0]):
        raise WrongError(f"scales {scales} in and {output[0]} out")
    return broadcast(call)


def _places(call: Call, size: int, kernel: int, stride: int, dilation: int) -> int:
    padding = call.option(0, "b")
    span = (kernel - 1) * dilation + 1
    if min(kernel, stride, dilation) < 1 or padding not in tuple(Padding):
        raise WrongError(f"a window of {kernel} by steps of {stride} and {dilation}")
    return -(-size // stride) if padding == Padding.SAME else (size - span) // stride + 1


def convolution(call: Call) -> Shape:
    """CONV_2D, NHWC; fewer channels in the weights than in the input are groups."""
    batch, height, width, channels = call.image(0)
    out, rows, columns, depth = call.image(1)
    groups, rest = divmod(channels, depth)
    if rest or out % groups:
        raise WrongError(f"{out}x{depth} weights for {channels} channels")
    _bias(call, out)
    return (
        batch,
        _places(call, height, rows, call.option(2), call.option(5, default=1)),
        _places(call, width, columns, call.option(1), call.option(4, default=1)),
        out,
    )


def depthwise(call: Call) -> Shape:
    """DEPTHWISE_CONV_2D: weights (1, H, W, channels x multiplier)."""
    batch, height, width, channels = call.image(0)
    one, rows, columns, out = call.image(1)
    if one != 1 or out % channels or call.option(3) not in {0, out // channels}:
        raise WrongError(f"{one}x{out} weights for {channels} channels")
    _bias(call, out)
    return (
        batch,
        _places(call, height, rows, call.option(2), call.option(6, default=1)),
        _places(call, width, columns, call.option(1), call.option(5, default=1)),
        out,
    )


def fully_connected(call: Call) -> Shape:
    """FULLY_CONNECTED: rows of as many values as the weights have, whatever the rank."""
    shape, weights = call.shape(0), call.shape(1)
    if len(weights) != 2 or not shape or prod(shape) % weights[1]:
        raise WrongError(f"weights of shape {weights} for an input of {shape}")
    if call.option(1, "b"):
        raise WrongError("its weights are shuffled")
    _bias(call, weights[0])
    if call.option(2, "b"):
        if shape[-1] != weights[1]:
            raise WrongError(f"weights of shape {weights} for an input of {shape}")
        return (*shape[:-1], weights[0])
    return (prod(shape) // weights[1], weights[0])


def _bias(call: Call, channels: int) -> None:
    bias = call.inputs[2] if len(call.inputs) > 2 else None
    if bias is not None and prod(bias.shape) != channels:
        raise WrongError(f"a bias of shape {bias.shape} for {channels} channels")
    weight = call.inputs[1]
    if weight is not None and len(weight.scales) > 1:
        axis = 3 if call.operator.name == "DEPTHWISE_CONV_2D" else 0
        if weight.axis != axis or len(weight.scales) != channels:
            raise WrongError(f"{len(weight.scales)} scales along axis {weight.axis} of its weights")


def pool(call: Call) -> Shape:
    """AVERAGE_POOL_2D and MAX_POOL_2D: the window is in the options."""
    batch, height, width, channels = call.image(0)
    rows, columns = call.option(4), call.option(3)
    if min(rows, columns) < 1 or rows * columns > MAX_WINDOW:
        raise WrongError(f"a window of {rows}x{columns} over {height}x{width}")
    return (
        batch,
        _places(call, height, rows, call.option(2), 1),
        _places(call, width, columns, call.option(1), 1),
        channels,
    )


def reshape(call: Call) -> Shape:
    """Any shape of as many values; the operand says which, else the options."""
    shape = call.outputs[0].shape
    operand = call.inputs[1] if len(call.inputs) > 1 else None
    if operand is None:
        wanted = call.option_list(0)
    elif operand.is_constant:
        wanted = call.ints(1)
    else:
        wanted = list(shape)  # known when it runs
    free = wanted.count(-1)
    fits = len(wanted) == len(shape) and free < 2 and prod(shape) == prod(call.shape(0))
    if not fits or any(a not in {-1, b} for a, b in zip(wanted, shape, strict=True)):
        raise WrongError(f"it makes {tuple(wanted)} of {call.shape(0)}, and its output is {shape}")
    return shape


def squeeze(call: Call) -> Shape:
    """SQUEEZE: without the axes of one that the options name, or without all of them."""
    shape = call.shape(0)
    axes = {call.axis(value, len(shape)) for value in call.option_list(0)}
    dropped = axes or {at for at, size in enumerate(shape) if size == 1}
    if any(shape[at] != 1 for at in dropped):
        raise WrongError(f"axes {sorted(axes)} of {shape}")
    return tuple(size for at, size in enumerate(shape) if at not in dropped)


def expand(call: Call) -> Shape:
    """EXPAND_DIMS: one axis more."""
    shape, values = call.shape(0), call.ints(1)
    if len(values) != 1:
        raise WrongError(f"axes {values}")
    axis = call.axis(values[0], len(shape) + 1)
    return (*shape[:axis], 1, *shape[axis:])


def pad(call: Call) -> Shape:
    """PAD, PADV2 and MIRROR_PAD."""
    shape, amounts = call.shape(0), call.ints(1)
    if len(amounts) != 2 * len(shape) or min(amounts, default=0) < 0 or len(shape) > 4:
        raise WrongError(f"paddings {amounts} of shape {shape}")
    if call.operator.name == "MIRROR_PAD" and any(
        amount >= size for amount, size in zip(amounts, np.repeat(shape, 2), strict=True)
    ):
        raise WrongError(f"mirrors of {amounts} in shape {shape}")
    return tuple(
        size + before + behind
        for size, before, behind in zip(shape, amounts[::2], amounts[1::2], strict=True)
    )


def reduce(call: Call) -> Shape:
    """MEAN, SUM, REDUCE_MAX and REDUCE_MIN."""
    shape = call.shape(0)
    axes = {call.axis(value, len(shape)) for value in call.ints(1)}
    keep = call.option(0, "b")
    return tuple(
        1 if at in axes else size for at, size in enumerate(shape) if keep or at not in axes
    )


def extremum(call: Call) -> Shape:
    """ARG_MAX and ARG_MIN."""
    shape, values = call.shape(0), call.ints(1)
    if len(values) != 1:
        raise WrongError(f"axes {values}")
    axis = call.axis(values[0], len(shape))
    return shape[:axis] + shape[axis + 1 :]


def concatenation(call: Call) -> Shape:
    """CONCATENATION: shapes that differ along its axis only."""
    shapes = [call.shape(at) for at in range(len(call.inputs))]
    axis = call.axis(call.option(0), len(shapes[0]))
    others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(others) != 1 or len({len(shape) for shape in shapes}) != 1:
        raise WrongError(f"shapes {shapes} to join along axis {axis}")
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def transpose(call: Call) -> Shape:
    """TRANSPOSE: an order of all axes."""
    shape, order = call.shape(0), call.ints(1)
    if sorted(order) != list(range(len(shape))) or len(shape) > 6:
        raise WrongError(f"order {order} of {len(shape)} dimensions")
    return tuple(shape[at] for at in order)


def strided_slice(call: Call) -> Shape:
    """STRIDED_SLICE, with begins, ends and dropped axes as masks of bits."""
    shape = call.shape(0)
    begins, ends, steps = (call.ints(at) for at in (1, 2, 3))
    if not len(begins) == len(ends) == len(steps) <= len(shape) <= 5 or 0 in steps:
        raise WrongError(f"slices {begins}, {ends}, {steps} of shape {shape}")
    no_begin, no_end, ellipsis, new_axis, drop = (call.option(slot) for slot in range(5))
    if ellipsis or new_axis or call.option(5, "b"):
        raise WrongError("an ellipsis or a new axis, which are not supported")
    made = []
    for at, size in enumerate(shape):
        if at >= len(begins):
            made.append(size)
        elif drop >> at & 1:
            call.axis(begins[at], size)
            if steps[at] < 0:
                raise WrongError("one element, backwards")
        else:
            begin = None if no_begin >> at & 1 else begins[at]
            end = None if no_end >> at & 1 else ends[at]
            made.append(len(range(*slice(begin, end, steps[at]).indices(size))))
    return tuple(made)


def sliced(call: Call) -> Shape:
    """SLICE: a size of -1 is all that is left."""
    shape, begins, sizes = call.shape(0), call.ints(1), call.ints(2)
    if not len(begins) == len(sizes) == len(shape) <= 5:
        raise WrongError(f"slices {begins}, {sizes} of shape {shape}")
    made = []
    for size, begin, wish in zip(shape, begins, sizes, strict=True):
        length = size - begin if wish == -1 else wish
        if begin < 0 or length < 0 or begin + length > size:
            raise WrongError(f"a slice of {wish} from {begin} of {size}")
        made.append(length)
    return tuple(made)


def resize(call: Call) -> Shape:
    """RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR."""
    batch, _, _, channels = call.image(0)
    sizes = call.ints(1)
    if len(sizes) != 2:
        raise WrongError(f"size {sizes}")
    return (batch, *sizes, channels)


def split(call: Call) -> Shape:
    """SPLIT into equal parts."""
    shape, values = call.shape(1), call.ints(0)
    parts = len(call.outputs)
    axis = call.axis(values[0], len(shape)) if len(values) == 1 else -1
    if axis < 0 or parts != call.option(0) or shape[axis] % parts:
        raise WrongError(f"{parts} parts of shape {shape} along {values}")
    return (*shape[:axis], shape[axis] // parts, *shape[axis + 1 :])


def split_v(call: Call) -> list[Shape]:
    """SPLIT_V into parts of given sizes, one of which may be -1: what the others leave."""
    shape, sizes, values = call.shape(0), call.ints(1), call.ints(2)
    axis = call.axis(values[0], len(shape)) if len(values) == 1 else -1
    if axis < 0 or not len(sizes) == len(call.outputs) == call.option(0):
        raise WrongError(f"{len(sizes)} parts into {len(call.outputs)} outputs along {values}")
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = shape[axis] - sum(sizes) - 1
    if min(sizes) < 1 or sum(sizes) != shape[axis]:
        raise WrongError(f"parts of {sizes} of shape {shape} along {values}")
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def unpack(call: Call) -> Shape:
    """UNPACK: as many outputs as the axis has places."""
    shape = call.shape(0)
    axis = call.axis(call.option(1), len(shape))
    if not shape[axis] == len(call.outputs) == call.option(0):
        raise WrongError(f"{len(call.outputs)} outputs of shape {shape} along axis {axis}")
    return shape[:axis] + shape[axis + 1 :]


def matrices(call: Call) -> Shape:
    """BATCH_MATMUL, whose options say which operand is transposed."""
    left, right = call.shape(0), call.shape(1)
    if not 2 <= min(len(left), len(right)) <= max(len(left), len(right)) <= 5:
        raise WrongError(f"products of shapes {left} and {right}")
    rows, terms = left[-2:] if not call.option(0, "b") else left[:-3:-1]
    others, columns = right[-2:] if not call.option(1, "b") else right[:-3:-1]
    if terms != others:
        raise WrongError(f"products of shapes {left} and {right}")
    try:
        return (*np.broadcast_shapes(left[:-2], right[:-2]), rows, columns)
    except ValueError as error:
        raise WrongError(f"products of shapes {left} and {right}") from error


def transposed(call: Call) -> Shape:
    """TRANSPOSE_CONV: a convolution from its output, whose shape is an operand, to its input."""
    wanted = tuple(call.ints(0))
    batch, height, width, channels = call.image(2)
    out, rows, columns, depth = call.image(1)
    if len(wanted) != 4 or wanted[0] != batch or wanted[3] != out or depth != channels:
        raise WrongError(f"it makes {wanted} of {call.shape(2)} by weights {call.shape(1)}")
    places = (
        _places(call, wanted[1], rows, call.option(2), 1),
        _places(call, wanted[2], columns, call.option(1), 1),
    )
    if places != (height, width):
        raise WrongError(f"a window over {wanted} has {places} places, its input {height, width}")
    bias = call.inputs[3] if len(call.inputs) > 3 else None
    weight = call.inputs[1]
    if bias is not None and prod(bias.shape) != out:
        raise WrongError(f"a bias of shape {bias.shape} for {out} channels")
    if weight is not None and len(weight.scales) > 1 and (weight.axis or len(weight.scales) != out):
        raise WrongError(f"{len(weight.scales)} scales along axis {weight.axis} of its weights")
    return wanted


def gather(call: Call) -> Shape:
    """GATHER with constant numbers; kernels read any other where it points to."""
    shape, numbers = call.shape(0), call.ints(1)
    axis = call.axis(call.option(0), len(shape))
    if call.option(1) or not all(0 <= number < shape[axis] for number in numbers):
        raise WrongError(f"numbers {numbers} of {shape[axis]}")
    return (*shape[:axis], *call.shape(1), *shape[axis + 1 :])


def space_to_batch(call: Call) -> Shape:
    """SPACE_TO_BATCH_ND of images, as before a dilated convolution."""
    batch, *spaces, channels = call.image(0)
    blocks, edges = call.ints(1), call.ints(2)
    if len(blocks) != 2 or len(edges) != 4 or min(*blocks, *edges, 0) < 0 or 0 in blocks:
        raise WrongError(f"blocks {blocks} with edges {edges}")
    made = []
    for at, (size, block) in enumerate(zip(spaces, blocks, strict=True)):
        padded = size + edges[2 * at] + edges[2 * at + 1]
        if padded % block:
            raise WrongError(f"blocks of {block} in {padded}")
        made.append(padded // block)
    return (batch * prod(blocks), *made, channels)


def batch_to_space(call: Call) -> Shape:
    """BATCH_TO_SPACE_ND of images."""
    batch, *spaces, channels = call.image(0)
    blocks, edges = call.ints(1), call.ints(2)
    if len(blocks) != 2 or len(edges) != 4 or min(*blocks, *edges, 0) < 0 or batch % prod(blocks):
        raise WrongError(f"blocks {blocks} with edges {edges}")
    made = [
        size * block - edges[2 * at] - edges[2 * at + 1]
        for at, (size, block) in enumerate(zip(spaces, blocks, strict=True))
    ]
    return (batch // prod(blocks), *made, channels)


def cast(call: Call) -> Shape:
    """CAST."""
    if any(tensor is not None and tensor.dtype == "int4" for tensor in call.inputs):
        raise WrongError("it casts int4")
    return call.shape(0)


def pack(call: Call) -> Shape:
    """PACK: equal shapes along a new axis."""
    shapes = {call.shape(at) for at in range(len(call.inputs))}
    (shape, *others) = shapes
    axis = call.axis(call.option(1), len(shape) + 1)
    if others or call.option(0) != len(call.inputs):
        raise WrongError(f"shapes {sorted(shapes)} to pack")
    return (*shape[:axis], len(call.inputs), *shape[axis:])


def prelu(call: Call) -> Shape:
    """PRELU: slopes that broadcast to the input."""
    if broadcast(call) != call.shape(0):
        raise WrongError(f"slopes of shape {call.shape(1)} for {call.shape(0)}")
    return call.shape(0)


def blocks(call: Call) -> Shape:
    """SPACE_TO_DEPTH and its inverse."""
    batch, height, width, channels = call.image(0)
    size = call.option(0)
    if not 1 <= size <= 1 << 12:
        raise WrongError(f"blocks of {size}")
    if call.operator.name == "DEPTH_TO_SPACE":
        if channels % size**2:
            raise WrongError(f"{channels} channels in blocks of {size}")
        return (batch, height * size, width * size, channels // size**2)
    if height % size or width % size:
        raise WrongError(f"{height}x{width} in blocks of {size}")
    return (batch, height // size, width // size, channels * size**2)
