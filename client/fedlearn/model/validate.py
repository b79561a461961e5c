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

from fedlearn.errors import ModelError
from fedlearn.model import shapes
from fedlearn.model.flatbuffer import Table, corrupt
from fedlearn.model.graph import MAX_NODES, MAX_OPERANDS, Operator, Tensor
from fedlearn.model.schema import (
    ITEM_BITS,
    MetadataSlot,
    ModelSlot,
    SignatureSlot,
)
from fedlearn.model.shapes import Call, Shape, WrongError

# Values of all activations together: more than a board has room for.
MAX_VALUES = 1 << 26
# The runtimes multiply, divide and shift by scales without a look at them. Real ones lie far
# within; a channel of weights that are all zero has some 2^-27.
LEAST_SCALE, GREATEST_SCALE = 2.0**-60, 2.0**60


@dataclass(frozen=True)
class _Rule:
    """What an operator has and makes.

    `options` is the type of its options in the schema's union; without `needs_options` they may be
    left out. Operands and outputs are letters: `a` activations, all of one type; `q` int8 ones; `w`
    int8 weights and `b` their int32 bias; `f` float32; `x` anything. What ends in `?` may be left
    out, in `-` also be -1, in `*` be repeated. `shape` makes the shape of all outputs, or a list.
    """

    options: int | None
    operands: str
    outputs: str
    shape: Callable[[Call], Shape | list[Shape]]
    needs_options: bool = False


_RULES = {
    "ABS": _Rule(78, "a", "a", shapes.same),
    "ADD": _Rule(11, "a a", "a", shapes.added),
    "ARG_MAX": _Rule(40, "a x", "x", shapes.extremum),
    "ARG_MIN": _Rule(57, "a x", "x", shapes.extremum),
    "AVERAGE_POOL_2D": _Rule(5, "a", "a", shapes.pool, needs_options=True),
    "BATCH_MATMUL": _Rule(101, "a a", "a", shapes.matrices, needs_options=True),
    "BATCH_TO_SPACE_ND": _Rule(24, "a x x", "a", shapes.batch_to_space),
    "BROADCAST_TO": _Rule(104, "a x", "a", shapes.broadcast_to),
    "CAST": _Rule(37, "x", "x", shapes.cast),
    "CONCATENATION": _Rule(10, "a*", "a", shapes.concatenation),
    "CONV_2D": _Rule(1, "q w b", "q", shapes.convolution, needs_options=True),
    "DEPTH_TO_SPACE": _Rule(94, "a", "a", shapes.blocks, needs_options=True),
    "DEPTHWISE_CONV_2D": _Rule(2, "q w b", "q", shapes.depthwise, needs_options=True),
    "DEQUANTIZE": _Rule(38, "a", "f", shapes.same),
    "DIV": _Rule(29, "a a", "a", shapes.broadcast),
    "ELU": _Rule(None, "a", "a", shapes.same),
    "EQUAL": _Rule(53, "a a", "x", shapes.broadcast),
    "EXP": _Rule(33, "a", "a", shapes.same),
    "EXPAND_DIMS": _Rule(52, "a x", "a", shapes.expand),
    "FULLY_CONNECTED": _Rule(8, "q w b-", "q", shapes.fully_connected, needs_options=True),
    "GATHER": _Rule(23, "a x", "a", shapes.gather, needs_options=True),
    "GELU": _Rule(116, "a", "a", shapes.same),
    "GREATER": _Rule(44, "a a", "x", shapes.broadcast),
    "HARD_SWISH": _Rule(91, "a", "a", shapes.same),
    "L2_NORMALIZATION": _Rule(12, "a", "a", shapes.same),
    "LEAKY_RELU": _Rule(75, "a", "a", shapes.same, needs_options=True),
    "LESS": _Rule(41, "a a", "x", shapes.broadcast),
    "LOG_SOFTMAX": _Rule(36, "a", "a", shapes.same),
    "LOGISTIC": _Rule(None, "a", "a", shapes.same),
    "MAXIMUM": _Rule(39, "a a", "a", shapes.broadcast),
    "MAX_POOL_2D": _Rule(5, "a", "a", shapes.pool, needs_options=True),
    "MEAN": _Rule(27, "a x", "a", shapes.reduce),
    "MINIMUM": _Rule(39, "a a", "a", shapes.broadcast),
    "MIRROR_PAD": _Rule(77, "a x", "a", shapes.pad, needs_options=True),
    "MUL": _Rule(21, "a a", "a", shapes.broadcast),
    "NEG": _Rule(42, "a", "a", shapes.same),
    "NOT_EQUAL": _Rule(54, "a a", "x", shapes.broadcast),
    "PACK": _Rule(59, "a*", "a", shapes.pack, needs_options=True),
    "PAD": _Rule(22, "a x", "a", shapes.pad),
    "PADV2": _Rule(43, "a x a", "a", shapes.pad),
    "PRELU": _Rule(None, "a a", "a", shapes.prelu),
    "QUANTIZE": _Rule(89, "x", "q", shapes.same),
    "REDUCE_MAX": _Rule(27, "a x", "a", shapes.reduce),
    "REDUCE_MIN": _Rule(27, "a x", "a", shapes.reduce),
    "RELU": _Rule(None, "a", "a", shapes.same),
    "RELU6": _Rule(None, "a", "a", shapes.same),
    "RELU_0_TO_1": _Rule(None, "a", "a", shapes.same),
    "RELU_N1_TO_1": _Rule(None, "a", "a", shapes.same),
    "RESHAPE": _Rule(17, "a x?", "a", shapes.reshape),
    "RESIZE_BILINEAR": _Rule(15, "a x", "a", shapes.resize, needs_options=True),
    "RESIZE_NEAREST_NEIGHBOR": _Rule(74, "a x", "a", shapes.resize, needs_options=True),
    "REVERSE_V2": _Rule(81, "a x", "a", shapes.reverse),
    "RSQRT": _Rule(None, "a", "a", shapes.same),
    "SELECT_V2": _Rule(98, "x a a", "a", shapes.select),
    "SHAPE": _Rule(55, "x", "x", lambda call: (len(call.shape(0)),)),
    "SLICE": _Rule(48, "a x x", "a", shapes.sliced),
    "SOFTMAX": _Rule(9, "a", "a", shapes.same, needs_options=True),
    "SPACE_TO_BATCH_ND": _Rule(25, "a x x", "a", shapes.space_to_batch),
    "SPACE_TO_DEPTH": _Rule(19, "a", "a", shapes.blocks, needs_options=True),
    "SPLIT": _Rule(35, "x a", "a*", shapes.split, needs_options=True),
    "SPLIT_V": _Rule(79, "a x x", "a*", shapes.split_v, needs_options=True),
    "SQRT": _Rule(None, "a", "a", shapes.same),
    "SQUARED_DIFFERENCE": _Rule(76, "a a", "a", shapes.added),
    "SQUEEZE": _Rule(30, "a", "a", shapes.squeeze),
    "STRIDED_SLICE": _Rule(32, "a x x x", "a", shapes.strided_slice, needs_options=True),
    "SUB": _Rule(28, "a a", "a", shapes.added),
    "SUM": _Rule(27, "a x", "a", shapes.reduce),
    "TANH": _Rule(None, "a", "a", shapes.same),
    "TRANSPOSE": _Rule(26, "a x", "a", shapes.transpose),
    "TRANSPOSE_CONV": _Rule(49, "x w q b?", "q", shapes.transposed, needs_options=True),
    "UNPACK": _Rule(64, "a", "a*", shapes.unpack, needs_options=True),
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
            if rule := _RULES.get(operator.name):
                _check_operator(rule, _call(data, operator, tensors))
        except (WrongError, ZeroDivisionError) as error:
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
        raise WrongError(f"nothing before it makes tensor {early[0]}")
    if made.intersection(operator.outputs) or len(set(operator.outputs)) != len(operator.outputs):
        raise WrongError("its output is made twice")


def _call(data: bytes, operator: Operator, tensors: Sequence[Tensor]) -> Call:
    return Call(
        data,
        operator,
        tuple(tensors[number] if number >= 0 else None for number in operator.inputs),
        tuple(tensors[number] for number in operator.outputs),
    )


def _check_operator(rule: _Rule, call: Call) -> None:
    kind = call.operator.options_type
    if kind != (rule.options or 0) and (kind or rule.needs_options):
        raise WrongError(f"it has options of type {kind}")
    operands = [
        *_paired(rule.operands, call.inputs, "inputs"),
        *_paired(rule.outputs, call.outputs, "outputs"),
    ]
    types = {tensor.dtype for letter, tensor in operands if letter == "a"}
    if len(types) > 1:
        raise WrongError(f"it mixes {' and '.join(sorted(types))}")
    for letter, tensor in operands:
        _check_operand(letter, tensor)
    made = rule.shape(call)
    shapes = made if isinstance(made, list) else [made] * len(call.outputs)
    for output, shape in zip(call.outputs, shapes, strict=True):
        if output.shape != shape:
            raise WrongError(f"it makes {shape}, and its output is {output.shape}")


def _paired(
    letters: str, tensors: Sequence[Tensor | None], what: str
) -> Iterable[tuple[str, Tensor]]:
    """Each tensor with its letter; absent ones are left out."""
    words = letters.split()
    if words[-1].endswith("*"):
        words = [words[0]] * max(len(tensors), 1)
    least = sum(not word.endswith(("?", "-")) for word in words)
    if not least <= len(tensors) <= len(words):
        raise WrongError(f"it has {len(tensors)} {what}")
    for word, tensor in zip(words, tensors, strict=False):
        if tensor is not None:
            yield word[0], tensor
        elif not word.endswith("-"):
            raise WrongError("it lacks an input")


def _check_operand(letter: str, tensor: Tensor) -> None:
    dtype = {"q": "int8", "w": "int8", "b": "int32", "f": "float32"}.get(letter, tensor.dtype)
    if tensor.dtype != dtype:
        raise WrongError(f"{tensor.name} is {tensor.dtype}, not {dtype}")
    scales = len(tensor.scales)
    is_activation = letter in "aq" and dtype == "int8"
    if (is_activation and scales != 1) or (letter == "w" and not scales):
        raise WrongError(f"{tensor.name} has {scales} scales")
