# SPDX-License-Identifier: Apache-2.0
"""What a person wants to know of a model before training it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ModelError, TrainerError
from fedlearn.model import Model, Operator
from fedlearn.saturation import Saturation, saturation
from fedlearn.trainer.budget import measure
from fedlearn.trainer.loss import make_loss
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import count_layers, longest, trainable_tensors, weighted_operators
from fedlearn.wire.messages import LOSSES, TAILS, TrainingPlan


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
class CutReport:
    """What training the last `layers` layers with weights means.

    `step_kib` is the memory of one step with the batch size of the report, `feature_bytes` what the
    frozen prefix leaves in memory for each sample, `multiply_adds` those of one sample's forward
    pass through the tail.
    """

    layers: int
    first_operator: int
    tensors: tuple[int, ...]
    parameters: int
    multiply_adds: int
    step_kib: int
    feature_bytes: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelReport:
    """Everything that `fedlearn model inspect` shows."""

    sha256: str
    file_bytes: int
    input_shape: tuple[int, ...]
    input_type: str
    input_scale: float  # of the int8 input: samples.step and samples.zero_point of a device
    input_zero_point: int
    output_shape: tuple[int, ...]
    output_type: str
    operators: tuple[OperatorReport, ...]
    batch_size: int
    cuts: tuple[CutReport, ...]
    refusal: str | None  # why no more layers can be trained, if there are more
    saturation: tuple[Saturation, ...] | None  # None: no data were given

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return asdict(self)

    def to_text(self) -> str:
        """The report in plain words."""
        lines = [
            f"sha256 {self.sha256}, {self.file_bytes:,} bytes",
            f"{self.input_type} input {_shape(self.input_shape)}, "
            f"{self.output_type} output {_shape(self.output_shape)}",
            f"step {self.input_scale:.9g} and zero point {self.input_zero_point} of the int8 input",
            "",
            f"{'#':>3}  {'operator':<20} {'output':<16} {'step':>10} {'zero':>5}  weights",
        ]
        lines += [_operator_line(operator) for operator in self.operators]
        lines += ["", f"What can be trained (memory of one step of {self.batch_size} samples):"]
        if self.cuts:
            lines.append(
                "  layers  from  parameters  multiply-adds  memory KiB  bytes kept a sample  tail"
            )
        lines += [_cut_line(cut) for cut in self.cuts]
        if self.refusal is not None:
            lines.append(f"No more than that: {self.refusal}" if self.cuts else self.refusal)
        if self.saturation is not None:
            lines += ["", "Saturation on the data:"]
            lines.append(
                "  #  operator              outputs at the end  int8 in use  weights at 127"
            )
            names = {operator.index: operator.name for operator in self.operators}
            lines += [_saturation_line(each, names[each.operator]) for each in self.saturation]
        return "\n".join(lines)


def inspect_model(
    model: Model, batch_size: int = 16, inputs: NDArray[np.int8] | None = None
) -> ModelReport:
    """Describe a parsed model; with samples (N, ...) also how far it saturates on them."""
    first, last = (model.tensors[number] for number in (model.inputs[0], model.outputs[0]))
    cuts, refusal = _cuts(model, batch_size)
    return ModelReport(
        sha256=model.digest.hex(),
        file_bytes=len(model.data),
        input_shape=first.shape,
        input_type=first.dtype,
        input_scale=model.tensors[model.entry].scale,
        input_zero_point=model.tensors[model.entry].zero_point,
        output_shape=last.shape,
        output_type=last.dtype,
        operators=tuple(_operator(model, operator) for operator in model.operators),
        batch_size=batch_size,
        cuts=cuts,
        refusal=refusal,
        saturation=None if inputs is None else saturation(model, inputs),
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


def _cuts(model: Model, batch_size: int) -> tuple[tuple[CutReport, ...], str | None]:
    count = len(weighted_operators(model))
    most = longest(model)
    cuts: list[CutReport] = []
    try:
        named = {name: count_layers(model, name) for name in TAILS}
        for layers in range(1, most + 1):
            names = tuple(name for name, size in named.items() if size == layers)
            cuts.append(_cut(model, layers, batch_size, names))
        if most < count:
            trainable_tensors(model, "all")
    # The latter where this machine's runtime computes what the trainer does not.
    except (ModelError, TrainerError) as error:
        return tuple(cuts), str(error)
    return tuple(cuts), None if count else "the model has no layer with weights"


def _usual_loss(model: Model) -> str:
    """The loss that the end of the network tells of."""
    last = model.operators[model.exit_operator].name
    return {"SOFTMAX": LOSSES[0], "LOGISTIC": LOSSES[1]}.get(last, LOSSES[2])


def _cut(model: Model, layers: int, batch_size: int, names: tuple[str, ...]) -> CutReport:
    tensors = trainable_tensors(model, str(layers))
    numbers = [tensor.index for tensor in tensors]
    plan = TrainingPlan(_usual_loss(model), 1, batch_size, 1.0)
    tail = Tail(model, numbers, absorbed=make_loss(plan.loss, model).absorbed)
    need = measure(model, numbers, plan, batch_size)
    return CutReport(
        layers=layers,
        first_operator=tail.layers[0].operator.index,
        tensors=tuple(numbers),
        parameters=sum(prod(tensor.shape) for tensor in tensors),
        multiply_adds=tail.multiply_adds(),
        step_kib=-(-need.step_bytes // 1024),
        feature_bytes=need.feature_bytes // batch_size,
        names=names,
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


def _cut_line(cut: CutReport) -> str:
    return (
        f"  {cut.layers:>6}  {cut.first_operator:>4}  {cut.parameters:>10,}  "
        f"{cut.multiply_adds:>13,}  {cut.step_kib:>10,}  {cut.feature_bytes:>19,}  "
        f"{', '.join(cut.names) or cut.layers}"
    )


def _saturation_line(each: Saturation, name: str) -> str:
    weights = "" if each.weights_at_limit is None else f"{each.weights_at_limit:>14.1%}"
    return (
        f"{each.operator:>3}  {name:<20}  {each.at_limit:>14.1%}  {each.used:>11.0%}  {weights}"
    ).rstrip()
