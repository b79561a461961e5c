# SPDX-License-Identifier: Apache-2.0
"""When a model needs other scales, and which.

An activation that int8 cuts off too often gets a wider grid, one that uses little of its grid a
narrower one. In between nothing moves: each change costs every device a few bytes and every int32
bias a rounding. A weight of which many elements sit at the ends of their grid gets a coarser one.
Bounds on each change keep the claims of a hostile or broken device from moving a model far.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedlearn.model import Model
from fedlearn.model.rescale import Rescaled, held, rescale
from fedlearn.model.ties import Group, Ties
from fedlearn.wire.messages import ActivationRange

# A grid grows when more than this share of the values was cut off,
CLIPPED = 0.001
# to so much more than what was measured: training goes on,
HEADROOM = 1.25
# but by no more than this factor at once.
GROWTH = 4.0
# It shrinks when it is so many times as wide as that,
WIDE = 4.0
# by no more than this factor at once.
SHRINKAGE = 2.0

# A weight's grid becomes coarser by this factor
COARSER = 1.5
# when more than this share of a channel's weights, and more than one, sit at the ends: one does in
# every fresh file, which scales a channel by its largest weight.
AT_THE_ENDS = 0.01
_END = 127
# It becomes coarser by this factor
LEAP = 2.0
# when a weight of the channel moved by more than so many steps in one round: it is on its way out
# of its grid, and the bound on a step of SGD, which counts in steps of the grid, holds it up
FAR = 16.0
# while the largest weight keeps so many steps.
LEAST_LEFT = 16.0


def fitted(
    model: Model,
    ranges: Iterable[ActivationRange],
    weights: Mapping[int, tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> Rescaled | None:
    """The model with scales that fit what was measured; None when they do already.

    `weights` are the int8 weights by tensor before and after the round or training, in steps of the
    model's grid and not rounded to it. Ranges of tensors that are no int8 activations are ignored.
    """
    measured = {each.index: each for each in ranges}
    wishes = {}
    for group in Ties(model).groups:
        wish = None if group.pinned else _range(model, group, measured)
        if wish is not None:
            wishes[group.members[0]] = wish
    widths = {
        index: factors
        for index, (before, after) in weights.items()
        if (factors := _factors(model, index, before, after)) is not None
    }
    if not wishes and not widths:
        return None
    rescaled = rescale(model, wishes, widths)
    return rescaled if rescaled.data != model.data else None


def _range(
    model: Model, group: Group, measured: Mapping[int, ActivationRange]
) -> tuple[float, float] | None:
    """The range that a group of tied activations wants, None for the one that it has."""
    known = [measured[index] for index in group.members if index in measured]
    if not known:
        return None
    low, high = held(model.tensors[group.members[0]])
    width = high - low
    # Bounded at once, so that no claim is too large to count with.
    reach = width * GROWTH * 2
    want_low = max(min(0.0, *(each.low for each in known)) * HEADROOM, -reach)
    want_high = min(max(0.0, *(each.high for each in known)) * HEADROOM, reach)
    if max(each.clipped for each in known) > CLIPPED:
        # Only ever wider, at both ends: behind a clamp less is measured than will be there.
        if want_low >= low and want_high <= high:
            return None
        return _outwards(low, min(want_low, low), high, max(want_high, high))
    want = want_high - want_low
    if not 0.0 < want * WIDE < width or not set(group.makers) <= measured.keys():
        return None
    share = max(1.0, width / SHRINKAGE / want)
    return want_low * share, want_high * share


def _outwards(low: float, want_low: float, high: float, want_high: float) -> tuple[float, float]:
    """Ends as far out as they want to be, or as far as one change may widen a range."""
    more, allowed = (low - want_low) + (want_high - high), (high - low) * (GROWTH - 1.0)
    share = min(1.0, allowed / more)
    return low - (low - want_low) * share, high + (want_high - high) * share


def _factors(
    model: Model, index: int, before: NDArray[np.float64], after: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Factors for a weight's scales, None when no channel needs one."""
    tensor = model.tensors[index]
    if tensor.dtype != "int8":
        return None
    channels = len(tensor.scales)

    def rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
        if channels > 1:
            values = np.moveaxis(values, tensor.axis, 0)
        return values.reshape(channels, -1)

    values = np.abs(np.rint(rows(after)))
    at_end = (values >= _END).sum(axis=1)
    crowded = (at_end > 1) & (at_end > AT_THE_ENDS * values.shape[1])
    far = np.abs(rows(after - before)).max(axis=1) > FAR
    far &= values.max(axis=1) >= LEAST_LEFT * LEAP
    factors = np.where(far, LEAP, np.where(crowded, COARSER, 1.0))
    return factors if (factors > 1.0).any() else None
