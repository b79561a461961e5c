# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules: the factor of the rate at each step of a training."""

from __future__ import annotations

from collections.abc import Callable


def _half_cosine(done: float) -> float:
    """(1 + cos(pi done)) / 2 from its Taylor series.

    math.cos may differ in its last bit between C libraries, and each bit of a rate decides some
    weight's rounding; + - * / may not.
    """
    angle = 3.141592653589793 * done
    term = total = 1.0
    for order in range(2, 28, 2):
        term *= -angle * angle / (order * (order - 1))
        total += term
    return max((1.0 + total) / 2.0, 0.0)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda done: 1.0 - done,
    # Loshchilov and Hutter 2017, "SGDR", without the restarts.
    "cosine": _half_cosine,
}


def factor(schedule: str, step: int, steps: int) -> float:
    """The factor at `step` (from 0) of `steps`; 1 at the first, near 0 at the last."""
    return SCHEDULES[schedule](step / steps)
