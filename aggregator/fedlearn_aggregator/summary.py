# SPDX-License-Identifier: Apache-2.0
"""A round in some numbers, which stay when its updates are no longer kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from fedlearn.wire.messages import Metrics
from fedlearn_aggregator.tally import Tally


@dataclass(frozen=True, slots=True)
class MeanMetrics:
    """Mean of the devices' own metrics, each device the same weight.

    An accuracy is None when not every device told it: the loss may know none.
    """

    loss_before: float
    loss_after: float
    accuracy_before: float | None
    accuracy_after: float | None
    accuracy_personal: float | None = None

    @classmethod
    def of(cls, metrics: Sequence[Metrics]) -> MeanMetrics | None:
        """The mean; None of nothing."""
        if not metrics:
            return None
        return cls(
            loss_before=fmean(m.loss_before for m in metrics),
            loss_after=fmean(m.loss_after for m in metrics),
            accuracy_before=_mean([m.accuracy_before for m in metrics]),
            accuracy_after=_mean([m.accuracy_after for m in metrics]),
            accuracy_personal=_mean([m.accuracy_personal for m in metrics]),
        )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


@dataclass(frozen=True, slots=True)
class Summary:
    """`bytes_up` tallies the bodies of the updates, `bytes_down` those of the base model."""

    updates: int
    samples: int
    bytes_up: Tally
    bytes_down: Tally
    slowest_train_s: float | None
    metrics: MeanMetrics | None

    def to_json(self) -> str:
        """As it is kept in the store."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Summary:
        """The inverse of `to_json`."""
        values = json.loads(text)
        metrics = values["metrics"]
        return cls(
            updates=values["updates"],
            samples=values["samples"],
            bytes_up=Tally.from_dict(values["bytes_up"]),
            bytes_down=Tally.from_dict(values["bytes_down"]),
            slowest_train_s=values["slowest_train_s"],
            metrics=None if metrics is None else MeanMetrics(**metrics),
        )
