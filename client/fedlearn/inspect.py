# SPDX-License-Identifier: Apache-2.0
"""What a person wants to know of a model before training it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from fedlearn.errors import ModelError
from fedlearn.model import Model, Operator
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.wire.messages import TAILS


@dataclass(frozen=True, slots=True)
class OperatorReport:
    """One operator: what it makes, and how its output and weights are quantised."""

    index: int
    name: str
    output_shape: tuple[int, ...]
    output_scale: float | None
    output_zero_point: int | None
    weight_shape: tuple[int, ...] | None
    weight_scales: int  # 1: one for the tensor; more: one for each channel; 0: no weights


@dataclass(frozen=True, slots=True)
class TailReport:
    """What training one tail means. `refusal` says why it cannot be trained, if so."""

    tail: str
    tensors: tuple[int, ...]
    parameters: int
    multiply_adds: int  # of one sample's forward pass through the tail
    first_operator: int | None
    refusal: str | None


@dataclass(frozen=True, slots=True)
class ModelReport:
    """Everything that `fedlearn model inspect` shows."""

    sha256: str
    file_bytes: int
    input_shape: tuple[int, ...]
    input_type: str
    output_shape: tuple[int, ...]
    output_type: str
    operators: tuple[OperatorReport, ...]
    tails: tuple[TailReport, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return asdict(self)

    def to_text(self) -> str:
        """The report in plain words."""
        lines = [
            f"sha256 {self.sha256}, {self.file_bytes:,} bytes",
            f"{self.input_type} input {_shape(self.input_shape)}, "
            f"{self.output_type} output {_shape(self.output_shape)}",
            "",
            f"{'#':>3}  {'operator':<20} {'output':<16} {'step':>10} {'zero':>5}  weights",
        ]
        lines += [_operator_line(operator) for operator in self.operators]
        lines += ["", "What can be trained:"]
        lines += [_tail_line(tail) for tail in self.tails]
        return "\n".join(lines)


def inspect_model(model: Model) -> ModelReport:
    """Describe a parsed model."""
    # The file's own: what an application has to do with it, also where a QUANTIZE follows.
    input_, output = model.tensors[model.inputs[0]], model.tensors[model.outputs[0]]
    return ModelReport(
        sha256=model.digest.hex(),
        file_bytes=len(model.data),
        input_shape=input_.shape,
        input_type=input_.dtype,
        output_shape=output.shape,
        output_type=output.dtype,
        operators=tuple(_operator(model, operator) for operator in model.operators),
        tails=tuple(_tail(model, tail) for tail in TAILS),
    )


def _operator(model: Model, operator: Operator) -> OperatorReport:
    output = model.tensors[operator.outputs[0]] if operator.outputs else None
    quantised = output is not None and len(output.scales) == 1
    weights = [
        model.tensors[number]
        for number in operator.inputs[1:2]
        if number >= 0
        and model.tensors[number].dtype == "int8"
        and model.tensors[number].is_constant
    ]
    return OperatorReport(
        index=operator.index,
        name=operator.name,
        output_shape=output.shape if output else (),
        output_scale=output.scale if output and quantised else None,
        output_zero_point=output.zero_point if output and quantised else None,
        weight_shape=weights[0].shape if weights else None,
        weight_scales=len(weights[0].scales) if weights else 0,
    )


def _tail(model: Model, name: str) -> TailReport:
    try:
        tensors = trainable_tensors(model, name)
        tail = Tail(model, [tensor.index for tensor in tensors])
    except ModelError as error:
        return TailReport(name, (), 0, 0, None, str(error))
    return TailReport(
        tail=name,
        tensors=tuple(tensor.index for tensor in tensors),
        parameters=sum(prod(tensor.shape) for tensor in tensors),
        multiply_adds=tail.multiply_adds(),
        first_operator=tail.layers[0].operator.index,
        refusal=None,
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _operator_line(operator: OperatorReport) -> str:
    step = f"{operator.output_scale:.6g}" if operator.output_scale is not None else "-"
    zero = "-" if operator.output_zero_point is None else str(operator.output_zero_point)
    weights = ""
    if operator.weight_shape is not None:
        kind = "per channel" if operator.weight_scales > 1 else "per tensor"
        weights = f"{_shape(operator.weight_shape)}, {kind}"
    return (
        f"{operator.index:>3}  {operator.name:<20} {_shape(operator.output_shape):<16} "
        f"{step:>10} {zero:>5}  {weights}"
    ).rstrip()


def _tail_line(tail: TailReport) -> str:
    if tail.refusal is not None:
        return f"  {tail.tail:<6} no: {tail.refusal}"
    return (
        f"  {tail.tail:<6} from operator {tail.first_operator}: {tail.parameters:,} parameters, "
        f"{tail.multiply_adds:,} multiply-adds a sample"
    )
