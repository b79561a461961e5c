# SPDX-License-Identifier: Apache-2.0
"""Other scales for a model that stays the same in real units.

An int8 activation with scale s and zero point z holds the reals from (-128 - z) s to (127 - z) s
and cuts off the rest; a weight within +-127 s_w[c] cannot grow further. Training moves both, so a
file whose scales were measured before it was trained has to get others. What follows from a new
grid: the int32 biases of all layers that read the activation count in steps of s_x s_w[c], so they
and their scales in the file (which runtimes check) change with it; activations that operators tie
together (`fedlearn.model.ties`) get the same grid.

The file keeps its length and layout: only numbers in it are written over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.model import Model, Tensor
from fedlearn.model.ties import Group, Layer, Ties

# The steps between the ends of int8.
STEPS = 255
# Half of int32, the other half is the sum of products': `fedlearn.trainer.parameters` has the same.
BIAS_LIMIT = (1 << 30) - 1
WEIGHT_LIMIT = 127
# Bounds of s_x s_w / s_y: below 1 the trainer's integer arithmetic holds, and XNNPACK refuses
# layers below 2^-32.
_MULTIPLIERS = (2.0**-31, 1.0)
# Bounds of the ratio of an input's scale to the output's, of XNNPACK's elementwise operators.
_RATIOS = (2.0**-8, 2.0**7)
_ELEMENTWISE = {"ADD", "HARD_SWISH", "LEAKY_RELU", "MEAN", "QUANTIZE", "SUB"}


@dataclass(frozen=True, slots=True)
class Grid:
    """An activation's quantisation: real = scale (q - zero_point)."""

    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class Rescaled:
    """A file of the same length with other scales.

    `grids` are the new ones of the activations that changed. `factors` belong to the constants
    that changed, broadcastable to the tensor's shape: new integers = old integers * factor, before
    rounding. `refused` says by tensor number why a wish was not granted.
    """

    data: bytes
    grids: dict[int, Grid]
    factors: dict[int, NDArray[np.float64]]
    refused: dict[int, str]


def grid_of(low: float, high: float) -> Grid:
    """The grid for reals from `low` to `high`, stretched to hold zero, which is exact.

    A `low` of zero gives zero point -128, as behind a ReLU. ValueError without a range.
    """
    bottom, top = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((top - bottom) / STEPS))
    if not (low <= high and np.finfo(np.float32).tiny <= scale < np.inf):
        raise ValueError(f"{low} to {high} is no range")
    return Grid(scale, int(np.clip(np.rint(-128 - bottom / scale), -128, 127)))


def held(tensor: Tensor) -> tuple[float, float]:
    """Least and greatest real value that a quantised activation can hold."""
    return (-128 - tensor.zero_point) * tensor.scale, (127 - tensor.zero_point) * tensor.scale


def rescale(
    model: Model,
    ranges: Mapping[int, tuple[float, float]],
    widen: Mapping[int, NDArray[np.float64]] | None = None,
) -> Rescaled:
    """Give activations other ranges and weights coarser or finer steps.

    `ranges` are (low, high) in real units by activation, one of each group of tied ones; `widen`
    holds for a weight the factors of its scales, (C,) or (1,) as in the file. Wishes are granted
    one after the other; one that the file or a kernel does not allow is refused, the rest stands.
    """
    work = _Work(model)
    for index, (low, high) in sorted(ranges.items()):
        work.activation(index, low, high)
    for index, factors in sorted((widen or {}).items()):
        work.weight(index, factors)
    return work.result()


class _Work:
    """The scales so far."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._ties = Ties(model)
        self._groups = {each: group for group in self._ties.groups for each in group.members}
        self._layers = self._ties.layers
        self._old = {t.index: t.scales.astype(np.float64) for t in model.tensors}
        self._scales = dict(self._old)
        self._zeros: dict[int, int] = {}
        self._refused: dict[int, str] = {}

    def activation(self, index: int, low: float, high: float) -> None:
        """Grant or refuse one range."""
        group = self._groups.get(index)
        reason = "it is no int8 activation with one scale" if group is None else group.pinned
        if group is None or reason:
            self._refused[index] = reason
            return
        try:
            grid = grid_of(max(low, group.low), min(high, group.high))
        except ValueError as error:
            self._refused[index] = str(error)
            return
        if self._try({each: np.array([grid.scale]) for each in group.members}, index, group):
            self._zeros.update(dict.fromkeys(group.members, grid.zero_point))

    def weight(self, index: int, factors: NDArray[np.float64]) -> None:
        """Grant or refuse one weight's factors."""
        owners = [layer for layer in self._layers if layer.weight == index]
        scales = self._scales[index] if 0 <= index < len(self._model.tensors) else np.zeros(0)
        if len(owners) != 1 or not self._may_widen(owners[0]):
            self._refused[index] = "it is no weight of one layer alone"
        elif factors.shape != scales.shape or not (np.isfinite(factors) & (factors > 0)).all():
            self._refused[index] = f"{factors.shape} factors do not fit its {scales.size} scales"
        else:
            # Scales are float32 in the file.
            self._try({index: (scales * factors).astype(np.float32).astype(np.float64)}, index)

    def _may_widen(self, layer: Layer) -> bool:
        weight = self._model.tensors[layer.weight]
        return (
            weight.is_constant
            and weight.dtype == "int8"
            and not weight.zero_points.any()
            and not self._model.is_shared(layer.weight)
            and layer.weight not in self._ties.aliased
            and layer.operator.index not in self._ties.layer_pins
        )

    def _try(
        self, changes: dict[int, NDArray[np.float64]], index: int, group: Group | None = None
    ) -> bool:
        """Take over new scales unless a layer or operator cannot have them."""
        before = self._scales
        self._scales = {**before, **changes}
        members = set(group.members if group else (index,))
        reason = next(filter(None, (self._fault(layer, members) for layer in self._layers)), "")
        reason = reason or self._ratio_fault(members)
        if reason:
            self._scales = before
            self._refused[index] = reason
        return not reason

    def _fault(self, layer: Layer, changed: set[int]) -> str:
        """Why a layer cannot have the scales of now, "" if it can or has no part in the change."""
        if not changed & {layer.input, layer.weight, layer.output}:
            return ""
        now, then = (
            scales[layer.input] * scales[layer.weight] / scales[layer.output]
            for scales in (self._scales, self._old)
        )
        least, most = _MULTIPLIERS
        name = f"{layer.operator.name} {layer.operator.index}"
        if (now >= np.maximum(most, then * (1 + 1e-6))).any():
            return f"{name} would have to multiply its sums"
        if (now < np.minimum(least, then * (1 - 1e-6))).any():
            return f"the sums of {name} would vanish"
        for number, limit in ((layer.weight, WEIGHT_LIMIT), (layer.bias, BIAS_LIMIT)):
            factor = self._factor(layer, number)
            if factor is None:
                continue
            values = np.abs(self._model.array(number).astype(np.float64))
            # What is beyond it already may stay.
            if (np.rint(values * factor) > np.maximum(values, limit)).any():
                return f"the weights or biases of {name} would not fit"
        return ""

    def _ratio_fault(self, changed: set[int]) -> str:
        """Why an elementwise operator cannot have the scales of now."""
        least, most = _RATIOS
        for operator in self._model.operators:
            if operator.name not in _ELEMENTWISE or not changed & {
                *operator.inputs,
                *operator.outputs,
            }:
                continue
            y = operator.outputs[0]
            for x in operator.inputs:
                if x < 0 or not all(len(self._scales[each]) == 1 for each in (x, y)):
                    continue
                now = float((self._scales[x] / self._scales[y])[0])
                then = float((self._old[x] / self._old[y])[0])
                if not min(least, then) <= now <= max(most, then):
                    return f"the scales at {operator.name} {operator.index} would be too different"
        return ""

    def _factor(self, layer: Layer, number: int) -> NDArray[np.float64] | None:
        """Factor of the integers of a layer's weight or bias, None if they stay."""
        if number < 0:
            return None
        tensor = self._model.tensors[number]
        weight = self._model.tensors[layer.weight]
        steps = self._old[layer.weight] / self._scales[layer.weight]
        if number == layer.bias:
            steps = steps * (self._old[layer.input] / self._scales[layer.input])
        if (steps == 1.0).all():
            return None
        shape = [1] * len(tensor.shape)
        if steps.size > 1:
            shape[weight.axis if number == layer.weight else 0] = steps.size
        return steps.reshape(shape)

    def result(self) -> Rescaled:
        """The file with the scales of now."""
        factors: dict[int, NDArray[np.float64]] = {}
        values: dict[int, NDArray[np.int8] | NDArray[np.int32]] = {}
        for layer in self._layers:
            for number in (layer.weight, layer.bias):
                factor = self._factor(layer, number)
                if factor is not None:
                    old = self._model.array(number)
                    values[number] = np.rint(old * factor).astype(old.dtype)
                    factors[number] = factor
        data = bytearray(self._model.patched(values))
        for layer in self._layers:
            if layer.bias in factors and len(self._model.tensors[layer.bias].scales):
                product = self._scales[layer.input].astype(np.float32) * self._scales[
                    layer.weight
                ].astype(np.float32)
                _write(data, self._model.tensors[layer.bias].scales_offset, product)
        grids: dict[int, Grid] = {}
        for tensor in self._model.tensors:
            scales = self._scales[tensor.index].astype(np.float32)
            zero = self._zeros.get(tensor.index)
            if not np.array_equal(scales, tensor.scales):
                _write(data, tensor.scales_offset, scales)
            elif zero is None or zero == tensor.zero_point:
                continue
            if zero is not None:
                _write(data, tensor.zero_points_offset, np.array([zero], np.int64))
                grids[tensor.index] = Grid(float(scales[0]), zero)
        return Rescaled(bytes(data), grids, factors, self._refused)


def _write(data: bytearray, offset: int, values: NDArray[Any]) -> None:
    raw = values.astype(values.dtype.newbyteorder("<")).tobytes()
    data[offset : offset + len(raw)] = raw
