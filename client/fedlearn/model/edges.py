# SPDX-License-Identifier: Apache-2.0
"""Where the int8 part of a model begins and ends.

Unless it is told otherwise, TFLite's converter leaves input and output in float32, also with int8
operators only: a QUANTIZE then stands behind the input and a DEQUANTIZE before the output. The
application's side of a file stays as it is; data, loss and trainer work with the int8 tensors
inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedlearn.errors import ModelError
from fedlearn.model.graph import Operator, Tensor

_CONVERT_HINT = (
    "convert it with full integer quantisation: optimizations=[DEFAULT], a representative data "
    "set, supported_ops=[TFLITE_BUILTINS_INT8], inference_input_type=inference_output_type=int8"
)
# Operators that multiply with weights: whether their input is int8 tells a fully-int8 model from a
# dynamic-range one (int8 weights, float activations).
_WEIGHT_OPERATORS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")


@dataclass(frozen=True, slots=True)
class Edges:
    """The int8 tensors that a sample goes into and that the answer comes from.

    `exit_operator` makes the answer; `quantize` and `dequantize` are the operators between these
    tensors and a float32 input or output, None where the file's own tensor is int8.
    """

    entry: int
    exit: int
    exit_operator: int
    quantize: int | None
    dequantize: int | None


def find_edges(
    tensors: Sequence[Tensor],
    operators: Sequence[Operator],
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> Edges:
    """The edges of a model with one input and one output that is fully int8 between them.

    Raises ModelError, saying how to convert it, for any other.
    """
    if len(inputs) != 1 or len(outputs) != 1 or not operators:
        raise ModelError(
            f"the model has {len(inputs)} inputs, {len(outputs)} outputs and "
            f"{len(operators)} operators",
            hint="fedlearn trains models with one input and one output",
        )
    _refuse_float_weights(tensors, operators)
    entry, exit_ = inputs[0], outputs[0]
    readers = [operator for operator in operators if entry in operator.inputs]
    quantize = _between(tensors[entry], readers, "QUANTIZE")
    if quantize is not None:
        entry = quantize.outputs[0]
    makers = [operator for operator in operators if exit_ in operator.outputs]
    dequantize = _between(tensors[exit_], makers, "DEQUANTIZE")
    if dequantize is not None:
        exit_ = dequantize.inputs[0]
        makers = [operator for operator in operators if exit_ in operator.outputs]
    for number in (entry, exit_):
        tensor = tensors[number]
        if tensor.dtype != "int8" or len(tensor.scales) != 1:
            raise ModelError(
                f"input or output {tensor.name!r} is {tensor.dtype}, not quantised int8",
                hint=_CONVERT_HINT,
            )
    if len(makers) != 1 or makers[0] is quantize:
        raise ModelError(f"not exactly one operator makes the output {tensors[exit_].name!r}")
    return Edges(
        entry=entry,
        exit=exit_,
        exit_operator=makers[0].index,
        quantize=None if quantize is None else quantize.index,
        dequantize=None if dequantize is None else dequantize.index,
    )


def _refuse_float_weights(tensors: Sequence[Tensor], operators: Sequence[Operator]) -> None:
    for operator in operators:
        if operator.name in _WEIGHT_OPERATORS and len(operator.inputs) > 1:
            data, weight = (tensors[number] for number in operator.inputs[:2])
            if data.dtype == "float32":
                kind = "dynamic-range" if weight.dtype == "int8" else "float"
                raise ModelError(
                    f"this is a {kind} model, not a fully-int8 one", hint=_CONVERT_HINT
                )


def _between(edge: Tensor, operators: Sequence[Operator], name: str) -> Operator | None:
    """The only operator at a float32 edge, if it is the one that leads into the int8 part."""
    if edge.dtype != "float32" or len(operators) != 1:
        return None
    (operator,) = operators
    plain = len(operator.inputs) == len(operator.outputs) == 1 and operator.inputs[0] >= 0
    return operator if operator.name == name and plain else None
