# SPDX-License-Identifier: Apache-2.0
"""Scales for the next model, from what the devices measured.

Ranges come from peers, so none is believed alone: for each activation the devices' values are
sorted, and the one at three quarters decides, or a lower one where some do not report it. Devices
that are a quarter or less of a round cannot push it beyond what an honest one measured, and how far
it can move in a round is bounded (`fedlearn.model.fit`). Sorting makes the result the same in every
order of arrival.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from fedlearn.model import Model
from fedlearn.model.fit import fitted
from fedlearn.model.rescale import Rescaled
from fedlearn.wire.messages import ActivationRange, TrainableTensor
from fedlearn_aggregator.aggregation import Arrays
from fedlearn_aggregator.optimizers import OptimizerSettings, ServerState
from fedlearn_aggregator.requantise import edges, next_model

Report = Sequence[ActivationRange]

# Label skew makes some devices' ranges wider than others': the median would cut off the values of
# nearly half of them, the widest would be in the hand of one.
DECIDING = 0.75


def merge(reports: Collection[Report]) -> tuple[ActivationRange, ...]:
    """One range for each activation that more than half of the updates report."""
    claims: dict[int, list[ActivationRange]] = {}
    # Whoever lies may be among the few that report a range: a quarter of all is tolerated there,
    # too. As these are more than half of all, one is always left to decide.
    tolerated = len(reports) // 4
    for report in reports:
        for each in report:
            claims.setdefault(each.index, []).append(each)
    return tuple(
        ActivationRange(
            index,
            low=-_deciding([-each.low for each in found], tolerated),
            high=_deciding([each.high for each in found], tolerated),
            clipped=_deciding([each.clipped for each in found], tolerated),
        )
        for index, found in sorted(claims.items())
        if 2 * len(found) > len(reports)
    )


def _deciding(values: list[float], tolerated: int) -> float:
    last = len(values) - 1
    # Adding zero makes one of the two zeros, whichever came first.
    return sorted(values)[min(int(DECIDING * last), last - tolerated)] + 0.0


def fit(
    model: Model,
    tensors: Sequence[TrainableTensor],
    before: ServerState,
    state: ServerState,
    *,
    ranges: Report,
    settings: OptimizerSettings,
) -> tuple[ServerState, bytes]:
    """The next model of `state` with scales that fit, and the state in steps of its grids.

    `before` is the state that `model` was rounded from.
    Moments in real units stay; those that count in steps change with them.
    """
    data = next_model(model, tensors, state)
    rescaled = fitted(
        Model.parse(data),
        ranges,
        {
            t.index: (before.master[t.index], state.master[t.index])
            for t in tensors
            if t.dtype == "int8"
        },
    )
    if rescaled is None:
        return state, data
    master, first = _moved(state.master, rescaled), state.first
    limits = edges(tensors)
    for index, values in master.items():
        master[index] = np.clip(values, -limits[index], limits[index])
    if not settings.in_real_units:
        first = _moved(first, rescaled)
    state = ServerState(master, first, state.second)
    return state, next_model(Model.parse(rescaled.data), tensors, state)


def _moved(arrays: Arrays, rescaled: Rescaled) -> Arrays:
    """Arrays that count in steps of the old grids, in steps of the new ones."""
    return {
        index: values * rescaled.factors[index] if index in rescaled.factors else values
        for index, values in arrays.items()
    }
