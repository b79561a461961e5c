# SPDX-License-Identifier: Apache-2.0
"""What the TFLite runtime takes on trust: that a model is a graph that can be computed.

Its kernels check some of it and abort the process, or write behind a tensor, on the rest. So here
is, for each operator of int8 networks, which options and operands it has and which shape it makes
of them; the file must say the same. Operators outside of the table only get the checks that hold
for all: every tensor is made before it is read, and once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from fedlearn.errors import ModelError
from fedlearn.model.flatbuffer import Table, corrupt
from fedlearn.model.graph import MAX_NODES, MAX_OPERANDS, MAX_RANK, Operator, Tensor
from fedlearn.model.schema import (
    ITEM_BITS,
    MetadataSlot,
    ModelSlot,
    Padding,
    SignatureSlot,
)

# Values of all activations together: more than a board has room for.
MAX_VALUES = 1 << 26
# Cells of a pool's window, which no constant of the file bounds.
MAX_WINDOW = 1 << 20
# The runtimes multiply, divide and shift by scales without a look at them. Real ones lie far
# within; a channel of weights that are all zero has some 2^-27.
LEAST_SCALE, GREATEST_SCALE = 2.0**-60, 2.0**60

Shape = tuple[int, ...]


class _WrongError(Exception):
    """What is wrong with an operator, without its name."""


@dataclass(frozen=True)
class _Call:
    """An operator with its tensors at hand."""

    data: bytes
    operator: Operator
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]

    def shape(self, at: int) -> Shape:
        """Shape of an input."""
        tensor = self.inputs[at]
        if tensor is None:
            raise _WrongError(f"it lacks input {at}")
        return tensor.shape

    def image(self, at: int) -> Shape:
        """Shape of an input that must have four dimensions."""
        shape = self.shape(at)
        if len(shape) != 4:
            raise _WrongError(f"input {at} has {len(shape)} dimensions, not 4")
        return shape

    def ints(self, at: int) -> list[int]:
        """Values of an input that must be a constant of integers."""
        tensor = self.inputs[at] if at < len(self.inputs) else None
        if tensor is None or not tensor.is_constant or tensor.dtype not in {"int32", "int64"}:
            raise _WrongError(f"input {at} is no constant of integers")
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
            raise _WrongError(f"axis {value} of {rank} dimensions")
        return value % rank


def _same(call: _Call) -> Shape:
    return call.shape(0)


def _broadcast(call: _Call) -> Shape:
    shapes = [call.shape(at) for at in range(len(call.inputs))]
    if max(map(len, shapes)) > 4:  # some kernels abort above
        raise _WrongError("more than 4 dimensions to broadcast")
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise _WrongError(f"shapes {shapes} do not broadcast") from error


def _sum(call: _Call) -> Shape:
    """ADD and SUB add in steps of 2^-20 of twice the larger scale, and abort above one step."""
    scales = [float(tensor.scales[0]) for tensor in call.inputs if tensor and len(tensor.scales)]
    output = call.outputs[0].scales
    if scales and len(output) and 2 * max(scales) >= 2.0**20 * float(output[0]):
        raise _WrongError(f"scales {scales} in and {output[0]} out")
    return _broadcast(call)


def _places(call: _Call, size: int, kernel: int, stride: int, dilation: int) -> int:
    padding = call.option(0, "b")
    span = (kernel - 1) * dilation + 1
    if min(kernel, stride, dilation) < 1 or padding not in tuple(Padding):
        raise _WrongError(f"a window of {kernel} by steps of {stride} and {dilation}")
    return -(-size // stride) if padding == Padding.SAME else (size - span) // stride + 1


def _convolution(call: _Call) -> Shape:
    batch, height, width, channels = call.image(0)
    out, rows, columns, depth = call.image(1)
    groups, rest = divmod(channels, depth)
    if rest or out % groups:
        raise _WrongError(f"{out}x{depth} weights for {channels} channels")
    _bias(call, out)
    return (
        batch,
        _places(call, height, rows, call.option(2), call.option(5, default=1)),
        _places(call, width, columns, call.option(1), call.option(4, default=1)),
        out,
    )


def _depthwise(call: _Call) -> Shape:
    batch, height, width, channels = call.image(0)
    one, rows, columns, out = call.image(1)
    if one != 1 or out % channels or call.option(3) not in {0, out // channels}:
        raise _WrongError(f"{one}x{out} weights for {channels} channels")
    _bias(call, out)
    return (
        batch,
        _places(call, height, rows, call.option(2), call.option(6, default=1)),
        _places(call, width, columns, call.option(1), call.option(5, default=1)),
        out,
    )


def _fully_connected(call: _Call) -> Shape:
    shape, weights = call.shape(0), call.shape(1)
    if len(weights) != 2 or not shape or prod(shape) % weights[1]:
        raise _WrongError(f"weights of shape {weights} for an input of {shape}")
    if call.option(1, "b"):
        raise _WrongError("its weights are shuffled")
    _bias(call, weights[0])
    if call.option(2, "b"):
        if shape[-1] != weights[1]:
            raise _WrongError(f"weights of shape {weights} for an input of {shape}")
        return (*shape[:-1], weights[0])
    return (prod(shape) // weights[1], weights[0])


def _bias(call: _Call, channels: int) -> None:
    bias = call.inputs[2] if len(call.inputs) > 2 else None
    if bias is not None and prod(bias.shape) != channels:
        raise _WrongError(f"a bias of shape {bias.shape} for {channels} channels")
    weight = call.inputs[1]
    if weight is not None and len(weight.scales) > 1:
        axis = 3 if call.operator.name == "DEPTHWISE_CONV_2D" else 0
        if weight.axis != axis or len(weight.scales) != channels:
            raise _WrongError(
                f"{len(weight.scales)} scales along axis {weight.axis} of its weights"
            )


def _pool(call: _Call) -> Shape:
    batch, height, width, channels = call.image(0)
    rows, columns = call.option(4), call.option(3)
    if min(rows, columns) < 1 or rows * columns > MAX_WINDOW:
        raise _WrongError(f"a window of {rows}x{columns} over {height}x{width}")
    return (
        batch,
        _places(call, height, rows, call.option(2), 1),
        _places(call, width, columns, call.option(1), 1),
        channels,
    )


def _reshape(call: _Call) -> Shape:
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
        raise _WrongError(f"it makes {tuple(wanted)} of {call.shape(0)}, and its output is {shape}")
    return shape


def _squeeze(call: _Call) -> Shape:
    shape = call.shape(0)
    axes = {call.axis(value, len(shape)) for value in call.option_list(0)}
    dropped = axes or {at for at, size in enumerate(shape) if size == 1}
    if any(shape[at] != 1 for at in dropped):
        raise _WrongError(f"axes {sorted(axes)} of {shape}")
    return tuple(size for at, size in enumerate(shape) if at not in dropped)


def _expand(call: _Call) -> Shape:
    shape, values = call.shape(0), call.ints(1)
    if len(values) != 1:
        raise _WrongError(f"axes {values}")
    axis = call.axis(values[0], len(shape) + 1)
    return (*shape[:axis], 1, *shape[axis:])


def _pad(call: _Call) -> Shape:
    shape, amounts = call.shape(0), call.ints(1)
    if len(amounts) != 2 * len(shape) or min(amounts, default=0) < 0 or len(shape) > 4:
        raise _WrongError(f"paddings {amounts} of shape {shape}")
    if call.operator.name == "MIRROR_PAD" and any(
        amount >= size for amount, size in zip(amounts, np.repeat(shape, 2), strict=True)
    ):
        raise _WrongError(f"mirrors of {amounts} in shape {shape}")
    return tuple(
        size + before + behind
        for size, before, behind in zip(shape, amounts[::2], amounts[1::2], strict=True)
    )


def _reduce(call: _Call) -> Shape:
    shape = call.shape(0)
    axes = {call.axis(value, len(shape)) for value in call.ints(1)}
    keep = call.option(0, "b")
    return tuple(
        1 if at in axes else size for at, size in enumerate(shape) if keep or at not in axes
    )


def _arg(call: _Call) -> Shape:
    shape, values = call.shape(0), call.ints(1)
    if len(values) != 1:
        raise _WrongError(f"axes {values}")
    axis = call.axis(values[0], len(shape))
    return shape[:axis] + shape[axis + 1 :]


def _concatenation(call: _Call) -> Shape:
    shapes = [call.shape(at) for at in range(len(call.inputs))]
    axis = call.axis(call.option(0), len(shapes[0]))
    others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(others) != 1 or len({len(shape) for shape in shapes}) != 1:
        raise _WrongError(f"shapes {shapes} to join along axis {axis}")
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def _transpose(call: _Call) -> Shape:
    shape, order = call.shape(0), call.ints(1)
    if sorted(order) != list(range(len(shape))) or len(shape) > 6:
        raise _WrongError(f"order {order} of {len(shape)} dimensions")
    return tuple(shape[at] for at in order)


def _strided_slice(call: _Call) -> Shape:
    shape = call.shape(0)
    begins, ends, steps = (call.ints(at) for at in (1, 2, 3))
    if not len(begins) == len(ends) == len(steps) <= len(shape) <= 5 or 0 in steps:
        raise _WrongError(f"slices {begins}, {ends}, {steps} of shape {shape}")
    no_begin, no_end, ellipsis, new_axis, drop = (call.option(slot) for slot in range(5))
    if ellipsis or new_axis or call.option(5, "b"):
        raise _WrongError("an ellipsis or a new axis, which are not supported")
    made = []
    for at, size in enumerate(shape):
        if at >= len(begins):
            made.append(size)
        elif drop >> at & 1:
            call.axis(begins[at], size)
            if steps[at] < 0:
                raise _WrongError("one element, backwards")
        else:
            begin = None if no_begin >> at & 1 else begins[at]
            end = None if no_end >> at & 1 else ends[at]
            made.append(len(range(*slice(begin, end, steps[at]).indices(size))))
    return tuple(made)


def _slice(call: _Call) -> Shape:
    shape, begins, sizes = call.shape(0), call.ints(1), call.ints(2)
    if not len(begins) == len(sizes) == len(shape) <= 5:
        raise _WrongError(f"slices {begins}, {sizes} of shape {shape}")
    made = []
    for size, begin, wish in zip(shape, begins, sizes, strict=True):
        length = size - begin if wish == -1 else wish
        if begin < 0 or length < 0 or begin + length > size:
            raise _WrongError(f"a slice of {wish} from {begin} of {size}")
        made.append(length)
    return tuple(made)


def _resize(call: _Call) -> Shape:
    batch, _, _, channels = call.image(0)
    sizes = call.ints(1)
    if len(sizes) != 2:
        raise _WrongError(f"size {sizes}")
    return (batch, *sizes, channels)


def _split(call: _Call) -> Shape:
    shape, values = call.shape(1), call.ints(0)
    parts = len(call.outputs)
    axis = call.axis(values[0], len(shape)) if len(values) == 1 else -1
    if axis < 0 or parts != call.option(0) or shape[axis] % parts:
        raise _WrongError(f"{parts} parts of shape {shape} along {values}")
    return (*shape[:axis], shape[axis] // parts, *shape[axis + 1 :])


def _pack(call: _Call) -> Shape:
    shapes = {call.shape(at) for at in range(len(call.inputs))}
    (shape, *others) = shapes
    axis = call.axis(call.option(1), len(shape) + 1)
    if others or call.option(0) != len(call.inputs):
        raise _WrongError(f"shapes {sorted(shapes)} to pack")
    return (*shape[:axis], len(call.inputs), *shape[axis:])


def _prelu(call: _Call) -> Shape:
    if _broadcast(call) != call.shape(0):
        raise _WrongError(f"slopes of shape {call.shape(1)} for {call.shape(0)}")
    return call.shape(0)


def _blocks(call: _Call) -> Shape:
    """SPACE_TO_DEPTH and its inverse."""
    batch, height, width, channels = call.image(0)
    size = call.option(0)
    if not 1 <= size <= 1 << 12:
        raise _WrongError(f"blocks of {size}")
    if call.operator.name == "DEPTH_TO_SPACE":
        if channels % size**2:
            raise _WrongError(f"{channels} channels in blocks of {size}")
        return (batch, height * size, width * size, channels // size**2)
    if height % size or width % size:
        raise _WrongError(f"{height}x{width} in blocks of {size}")
    return (batch, height // size, width // size, channels * size**2)


@dataclass(frozen=True)
class _Rule:
    """What an operator has and makes.

    `options` is the type of its options in the schema's union; without `needs_options` they may be
    left out. Operands and outputs are letters: `a` activations, all of one type; `q` int8 ones; `w`
    int8 weights and `b` their int32 bias; `f` float32; `x` anything. What ends in `?` may be left
    out, in `-` also be -1, in `*` be repeated.
    """

    options: int | None
    operands: str
    outputs: str
    shape: Callable[[_Call], Shape]
    needs_options: bool = False


_RULES = {
    "ABS": _Rule(78, "a", "a", _same),
    "ADD": _Rule(11, "a a", "a", _sum),
    "ARG_MAX": _Rule(40, "a x", "x", _arg),
    "ARG_MIN": _Rule(57, "a x", "x", _arg),
    "AVERAGE_POOL_2D": _Rule(5, "a", "a", _pool, needs_options=True),
    "CONCATENATION": _Rule(10, "a*", "a", _concatenation),
    "CONV_2D": _Rule(1, "q w b", "q", _convolution, needs_options=True),
    "DEPTH_TO_SPACE": _Rule(94, "a", "a", _blocks, needs_options=True),
    "DEPTHWISE_CONV_2D": _Rule(2, "q w b", "q", _depthwise, needs_options=True),
    "DEQUANTIZE": _Rule(38, "a", "f", _same),
    "EXPAND_DIMS": _Rule(52, "a x", "a", _expand),
    "FULLY_CONNECTED": _Rule(8, "q w b-", "q", _fully_connected, needs_options=True),
    "HARD_SWISH": _Rule(91, "a", "a", _same),
    "L2_NORMALIZATION": _Rule(12, "a", "a", _same),
    "LEAKY_RELU": _Rule(75, "a", "a", _same, needs_options=True),
    "LOG_SOFTMAX": _Rule(36, "a", "a", _same),
    "LOGISTIC": _Rule(None, "a", "a", _same),
    "MAXIMUM": _Rule(39, "a a", "a", _broadcast),
    "MAX_POOL_2D": _Rule(5, "a", "a", _pool, needs_options=True),
    "MEAN": _Rule(27, "a x", "a", _reduce),
    "MINIMUM": _Rule(39, "a a", "a", _broadcast),
    "MIRROR_PAD": _Rule(77, "a x", "a", _pad, needs_options=True),
    "MUL": _Rule(21, "a a", "a", _broadcast),
    "PACK": _Rule(59, "a*", "a", _pack, needs_options=True),
    "PAD": _Rule(22, "a x", "a", _pad),
    "PADV2": _Rule(43, "a x a", "a", _pad),
    "PRELU": _Rule(None, "a a", "a", _prelu),
    "QUANTIZE": _Rule(89, "x", "q", _same),
    "REDUCE_MAX": _Rule(27, "a x", "a", _reduce),
    "RELU": _Rule(None, "a", "a", _same),
    "RELU6": _Rule(None, "a", "a", _same),
    "RELU_N1_TO_1": _Rule(None, "a", "a", _same),
    "RESHAPE": _Rule(17, "a x?", "a", _reshape),
    "RESIZE_BILINEAR": _Rule(15, "a x", "a", _resize, needs_options=True),
    "RESIZE_NEAREST_NEIGHBOR": _Rule(74, "a x", "a", _resize, needs_options=True),
    "SHAPE": _Rule(55, "x", "x", lambda call: (len(call.shape(0)),)),
    "SLICE": _Rule(48, "a x x", "a", _slice),
    "SOFTMAX": _Rule(9, "a", "a", _same, needs_options=True),
    "SPACE_TO_DEPTH": _Rule(19, "a", "a", _blocks, needs_options=True),
    "SPLIT": _Rule(35, "x a", "a*", _split, needs_options=True),
    "SQUEEZE": _Rule(30, "a", "a", _squeeze),
    "STRIDED_SLICE": _Rule(32, "a x x x", "a", _strided_slice, needs_options=True),
    "SUB": _Rule(28, "a a", "a", _sum),
    "SUM": _Rule(27, "a x", "a", _reduce),
    "TANH": _Rule(None, "a", "a", _same),
    "TRANSPOSE": _Rule(26, "a x", "a", _transpose),
}


def validate(
    data: bytes,
    root: Table,
    tensors: Sequence[Tensor],
    operators: Sequence[Operator],
    inputs: Sequence[int],
) -> None:
    """Raise ModelError, saying what is wrong, unless the graph can be computed as it stands."""
    for tensor in tensors:
        _check_tensor(tensor)
    if sum(prod(tensor.shape) for tensor in tensors if not tensor.is_constant) > MAX_VALUES:
        raise ModelError(f"the model's activations have more than {MAX_VALUES} values")
    _check_references(root, len(tensors))
    made = {tensor.index for tensor in tensors if tensor.is_constant}
    if made.intersection(inputs):
        raise corrupt("its input is a constant")
    made.update(inputs)
    for operator in operators:
        try:
            _check_order(operator, made)
            rule = _RULES.get(operator.name)
            if rule is not None:
                _check_operator(rule, _call(data, operator, tensors))
        except (_WrongError, ZeroDivisionError) as error:
            raise ModelError(
                f"operator {operator.index} ({operator.name}) cannot be computed: {error}",
                hint="convert the model again",
            ) from error
        made.update(operator.outputs)


def _check_tensor(tensor: Tensor) -> None:
    what = f"tensor {tensor.index} has {{}} ({tensor.dtype}{tensor.shape})"
    if tensor.dtype not in ITEM_BITS:
        raise ModelError(f"tensor {tensor.index} is of type {tensor.dtype}, which is not supported")
    if min(tensor.shape, default=1) < 1:
        raise corrupt(what.format("an empty shape"))
    bits = ITEM_BITS[tensor.dtype]
    if tensor.is_constant and (
        tensor.byte_count != -(-prod(tensor.shape) * bits // 8) or tensor.offset % max(bits // 8, 1)
    ):
        raise corrupt(what.format(f"{tensor.byte_count} bytes at {tensor.offset}"))
    scales, zeros = tensor.scales, tensor.zero_points
    axis = tensor.axis
    slices = tensor.shape[axis] if 0 <= axis < len(tensor.shape) else 0
    if tensor.dtype != "float32" and (
        len(scales) not in {0, 1, slices}
        or len(zeros) not in {0, len(scales)}
        or (tensor.dtype == "int8" and len(zeros) != len(scales))
        or not ((scales >= LEAST_SCALE) & (scales <= GREATEST_SCALE)).all()
        or not ((zeros >= -128) & (zeros <= 255)).all()
        or (tensor.dtype == "int8" and (zeros > 127).any())
    ):
        raise corrupt(what.format("no valid quantisation"))


def _check_references(root: Table, tensors: int) -> None:
    """What a runtime looks up without a check: metadata and the tensors of signatures."""
    _, buffers = root.vector(ModelSlot.BUFFERS, 4)
    for metadata in root.tables(ModelSlot.METADATA, MAX_NODES):
        if metadata.scalar(MetadataSlot.BUFFER, "I") >= buffers:
            raise corrupt("metadata without a buffer")
    for signature in root.tables(ModelSlot.SIGNATURES, MAX_NODES):
        for slot in (SignatureSlot.INPUTS, SignatureSlot.OUTPUTS):
            for entry in signature.tables(slot, MAX_OPERANDS):
                if entry.scalar(SignatureSlot.TENSOR_INDEX, "I") >= tensors:
                    raise corrupt("a signature without its tensor")


def _check_order(operator: Operator, made: set[int]) -> None:
    early = [number for number in operator.inputs if number >= 0 and number not in made]
    if early:
        raise _WrongError(f"nothing before it makes tensor {early[0]}")
    if made.intersection(operator.outputs) or len(set(operator.outputs)) != len(operator.outputs):
        raise _WrongError("its output is made twice")


def _call(data: bytes, operator: Operator, tensors: Sequence[Tensor]) -> _Call:
    return _Call(
        data,
        operator,
        tuple(tensors[number] if number >= 0 else None for number in operator.inputs),
        tuple(tensors[number] for number in operator.outputs),
    )


def _check_operator(rule: _Rule, call: _Call) -> None:
    kind = call.operator.options_type
    if kind != (rule.options or 0) and (kind or rule.needs_options):
        raise _WrongError(f"it has options of type {kind}")
    operands = [
        *_paired(rule.operands, call.inputs, "inputs"),
        *_paired(rule.outputs, call.outputs, "outputs"),
    ]
    types = {tensor.dtype for letter, tensor in operands if letter == "a"}
    if len(types) > 1:
        raise _WrongError(f"it mixes {' and '.join(sorted(types))}")
    for letter, tensor in operands:
        _check_operand(letter, tensor)
    shape = rule.shape(call)
    for output in call.outputs:
        if output.shape != shape:
            raise _WrongError(f"it makes {shape}, and its output is {output.shape}")


def _paired(
    letters: str, tensors: Sequence[Tensor | None], what: str
) -> Iterable[tuple[str, Tensor]]:
    """Each tensor with its letter; absent ones are left out."""
    words = letters.split()
    if words[-1].endswith("*"):
        words = [words[0]] * max(len(tensors), 1)
    least = sum(not word.endswith(("?", "-")) for word in words)
    if not least <= len(tensors) <= len(words):
        raise _WrongError(f"it has {len(tensors)} {what}")
    for word, tensor in zip(words, tensors, strict=False):
        if tensor is not None:
            yield word[0], tensor
        elif not word.endswith("-"):
            raise _WrongError("it lacks an input")


def _check_operand(letter: str, tensor: Tensor) -> None:
    dtype = {"q": "int8", "w": "int8", "b": "int32", "f": "float32"}.get(letter, tensor.dtype)
    if tensor.dtype != dtype:
        raise _WrongError(f"{tensor.name} is {tensor.dtype}, not {dtype}")
    scales = len(tensor.scales)
    is_activation = letter in "aq" and dtype == "int8"
    if (is_activation and scales != 1) or (letter == "w" and not scales):
        raise _WrongError(f"{tensor.name} has {scales} scales")
