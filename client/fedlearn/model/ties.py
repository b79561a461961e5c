# SPDX-License-Identifier: Apache-2.0
"""Which activations of a model share their quantisation, and which must keep it.

Operators that only move values (RESHAPE, MAX_POOL_2D, CONCATENATION, ...) do not requantise: all
their tensors have one scale and zero point, so these change together or not at all. The groups are
the classes of that relation (union-find). A group is pinned when something fixes its quantisation:
the specification (the output of a SOFTMAX is 1/256), the samples that come in, a constant, or an
operator of which this module does not know what its integers depend on.

Source: the "TensorFlow Lite 8-bit quantization specification", and what the kernels check.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf

from fedlearn.model import Model, Operator, Tensor
from fedlearn.model.activation import BOUNDS, activation_of

# All int8 tensors of these have the same scale and zero point.
TIED = {
    "AVERAGE_POOL_2D", "BATCH_TO_SPACE_ND", "BROADCAST_TO", "CONCATENATION", "DEPTH_TO_SPACE",
    "EXPAND_DIMS", "GATHER", "MAXIMUM", "MAX_POOL_2D", "MINIMUM", "MIRROR_PAD", "PACK", "PAD",
    "PADV2", "REDUCE_MAX", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2",
    "SELECT_V2", "SLICE", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE",
    "STRIDED_SLICE", "TOPK_V2", "TRANSPOSE", "UNPACK",
}  # fmt: skip
# These requantise from whatever their inputs have to whatever their output has.
FREE = {
    "ADD", "BATCH_MATMUL", "DEQUANTIZE", "DIV", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "MEAN",
    "MUL", "PRELU", "QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "SQUARED_DIFFERENCE", "SUB",
    "SUM",
}  # fmt: skip
# Their input is free, their output fixed by the specification, or no quantised number at all.
FIXED = {
    "ARG_MAX", "ARG_MIN", "EQUAL", "GREATER", "L2_NORMALIZATION", "LESS", "LOGISTIC",
    "LOG_SOFTMAX", "NOT_EQUAL", "SHAPE", "SOFTMAX", "TANH",
}  # fmt: skip
# Places of the input, the weight and the int32 bias, whose step is s_x s_w.
WEIGHTED = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of one quantisation.

    `makers` are those of the members whose values an operator computes and does not only move.
    `pinned` says why the quantisation must stay, "" if it need not. `low` and `high` are the
    real values that fused activations let through.
    """

    members: tuple[int, ...]
    makers: tuple[int, ...]
    pinned: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Layer:
    """An operator with weights by its tensors' numbers; a `bias` of -1 is absent."""

    operator: Operator
    input: int
    weight: int
    bias: int
    output: int


def is_quantised(tensor: Tensor) -> bool:
    """Whether it is int8 with one scale."""
    return tensor.dtype == "int8" and len(tensor.scales) == 1 and len(tensor.zero_points) == 1


def activation_bounds(operator: Operator) -> tuple[float, float]:
    """Least and greatest real value that the operator's activation lets through."""
    return BOUNDS.get(activation_of(operator), (-inf, inf))


class Ties:
    """The groups of quantised activations, ordered by their first member, and the layers.

    `aliased` are the tensors whose scales or zero points overlap in the file with those of others,
    and these; `layer_pins` says by a layer's operator why the step of its bias must stay.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.layers = _layers(model)
        self.aliased = _aliased(model)
        self.layer_pins = {
            layer.operator.index: reason
            for layer in self.layers
            if (reason := self._layer_pin(layer))
        }
        self._parents = {t.index: t.index for t in model.tensors if is_quantised(t)}
        for operator in model.operators:
            if operator.name in TIED:
                self._tie(self._operands(operator))
        self.groups = self._find_groups()

    def _tie(self, indices: list[int]) -> None:
        for other in indices[1:]:
            self._parents[self._root(other)] = self._root(indices[0])

    def _root(self, index: int) -> int:
        while self._parents[index] != index:
            self._parents[index] = self._parents[self._parents[index]]
            index = self._parents[index]
        return index

    def _operands(self, operator: Operator) -> list[int]:
        return [i for i in (*operator.inputs, *operator.outputs) if i in self._parents]

    def _find_groups(self) -> tuple[Group, ...]:
        members: dict[int, list[int]] = {}
        for index in self._parents:
            members.setdefault(self._root(index), []).append(index)
        pins = self._pins()
        makers = {
            index: operator
            for operator in self._model.operators
            if operator.name not in TIED
            for index in operator.outputs
        }
        found = []
        for indices in members.values():
            if all(self._model.tensors[index].is_constant for index in indices):
                continue
            reasons = [pins[index] for index in indices if index in pins]
            if any(not self.aliased.get(index, frozenset()) <= set(indices) for index in indices):
                reasons.append("the file keeps its quantisation in one place with another's")
            made = tuple(index for index in indices if index in makers)
            bounds = [activation_bounds(makers[index]) for index in made]
            found.append(
                Group(
                    members=tuple(indices),
                    makers=made,
                    pinned=reasons[0] if reasons else "",
                    low=min((low for low, _ in bounds), default=-inf),
                    high=max((high for _, high in bounds), default=inf),
                )
            )
        return tuple(found)

    def _pins(self) -> dict[int, str]:
        """Tensors whose quantisation must stay, and why."""
        model = self._model
        pins = {i: "it is a constant" for i in self._parents if model.tensors[i].is_constant}
        pins.update(dict.fromkeys((*model.inputs, model.entry), "samples come in by it"))
        for operator in model.operators:
            if operator.name in FIXED:
                pins.update(dict.fromkeys(operator.outputs, f"{operator.name} fixes it"))
            elif operator.name not in TIED | FREE | WEIGHTED.keys():
                reason = f"{operator.name} may depend on it"
                pins.update(dict.fromkeys(self._operands(operator), reason))
        makers = Counter(index for operator in model.operators for index in operator.outputs)
        pins.update({i: "it has several makers" for i, count in makers.items() if count > 1})
        for layer in self.layers:
            if layer.operator.index in self.layer_pins:
                pins[layer.input] = self.layer_pins[layer.operator.index]
            if not model.tensors[layer.weight].is_constant:
                pins[layer.weight] = "it is used as a weight"
        return pins

    def _layer_pin(self, layer: Layer) -> str:
        if layer.bias < 0:
            return ""
        name = f"{layer.operator.name} {layer.operator.index}"
        weight, bias = self._model.tensors[layer.weight], self._model.tensors[layer.bias]
        if not bias.is_constant or bias.dtype != "int32" or not weight.is_constant:
            return f"{name} has no constant int32 bias"
        if self._model.is_shared(layer.bias):
            return f"the bias of {name} is shared"
        if not len(weight.scales) or len(bias.scales) not in (0, len(weight.scales)):
            return f"the bias of {name} has no valid scales"
        return f"the bias of {name} shares its scales" if layer.bias in self.aliased else ""


def _layers(model: Model) -> list[Layer]:
    """The operators with weights, in execution order."""
    found = []
    for operator in model.operators:
        places = WEIGHTED.get(operator.name)
        if places is None or len(operator.outputs) != 1:
            continue
        x, weight, bias = (
            operator.inputs[at] if at < len(operator.inputs) else -1 for at in places
        )
        if min(x, weight) >= 0:
            found.append(Layer(operator, x, weight, bias, operator.outputs[0]))
    return found


def _aliased(model: Model) -> dict[int, frozenset[int]]:
    spans: list[tuple[int, int, int]] = []
    for tensor in model.tensors:
        for offset, size in (
            (tensor.scales_offset, 4 * len(tensor.scales)),
            (tensor.zero_points_offset, 8 * len(tensor.zero_points)),
        ):
            if offset and size:
                spans.append((offset, offset + size, tensor.index))
    found: dict[int, frozenset[int]] = {}
    cluster: set[int] = set()
    reach = 0
    for start, end, index in [*sorted(spans), (len(model.data), 0, -1)]:
        if start >= reach:
            if len(cluster) > 1:
                for each in cluster:
                    found[each] = found.get(each, frozenset()) | cluster
            cluster = set()
        cluster.add(index)
        reach = max(end, reach)
    return found
