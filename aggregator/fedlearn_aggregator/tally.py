# SPDX-License-Identifier: Apache-2.0
"""Many sizes in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Enough for a fair median, and for every device of a small fleet.
LISTED = 100


@dataclass(frozen=True, slots=True)
class Tally:
    """How many sizes there were, their sum, and the first `LISTED` of them."""

    count: int = 0
    total: int = 0
    first: tuple[int, ...] = ()

    @classmethod
    def of(cls, sizes: Iterable[int]) -> Tally:
        """The tally of these sizes."""
        values = tuple(sizes)
        return cls(len(values), sum(values), values[:LISTED])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tally:
        """The inverse of `dataclasses.asdict`, also after JSON."""
        return cls(values["count"], values["total"], tuple(values["first"]))

    def plus(self, size: int) -> Tally:
        """The tally with one more."""
        first = self.first if len(self.first) >= LISTED else (*self.first, size)
        return Tally(self.count + 1, self.total + size, first)
