# SPDX-License-Identifier: Apache-2.0
"""Scales for the next model: what the devices measured, merged, and the server's state with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fedlearn.model import Model
from fedlearn.model.fit import fitted
from fedlearn.wire.messages import ActivationRange, TrainableTensor
from fedlearn_aggregator.aggregation import Arrays
from fedlearn_aggregator.optimizers import OptimizerSettings, ServerState

# Of the devices' values, sorted by how far they reach, the one at this place decides.
_PLACE = 0.75


def merge(reports: Collection[Sequence[ActivationRange]]) -> tuple[ActivationRange, ...]:
    """One range for each activation that most of the devices reported, whatever their order."""
    by_index: dict[int, list[ActivationRange]] = {}
    for report in reports:
        for each in report:
            by_index.setdefault(each.index, []).append(each)
    merged = []
    for index, claims in sorted(by_index.items()):
        if 2 * len(claims) <= len(reports):
            continue
        place = int(_PLACE * (len(claims) - 1))
        merged.append(
            ActivationRange(
                index,
                -sorted(-each.low for each in claims)[place],
                sorted(each.high for each in claims)[place],
                sorted(each.clipped for each in claims)[place],
            )
        )
    return tuple(merged)


def fit(
    model: Model,
    tensors: Sequence[TrainableTensor],
    state: ServerState,
    ranges: Sequence[ActivationRange],
    settings: OptimizerSettings,
) -> tuple[Model, ServerState]:
    """The model with scales that fit, and the state in steps of its grids."""
    weights = {t.index: state.master[t.index] for t in tensors if t.dtype == "int8"}
    rescaled = fitted(model, ranges, weights)
    if rescaled is None:
        return model, state

    def moved(arrays: Arrays) -> Arrays:
        return {
            index: values * rescaled.factors[index] if index in rescaled.factors else values
            for index, values in arrays.items()
        }

    return Model.parse(rescaled.data), ServerState(
        moved(state.master),
        state.first if settings.in_real_units else moved(state.first),
        state.second,
    )
