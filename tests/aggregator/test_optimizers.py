# SPDX-License-Identifier: Apache-2.0
"""Server optimisers against plain Python arithmetic, one number at a time."""

import math
from typing import Any

import numpy as np
import pytest

from fedlearn.errors import ConfigError
from fedlearn_aggregator.optimizers import (
    WEIGHT_EDGE,
    OptimizerName,
    OptimizerSettings,
    ServerState,
    step,
)

DELTAS = [[0.25, -1.5, 0.0], [2.0, 0.125, -0.75], [-0.5, 0.5, 1.0]]
SCALES = [0.5, 0.03125, 0.0078125]


def run(deltas: list[list[float]], start: float = 1.0, **settings: Any) -> np.ndarray:  # type: ignore[type-arg]
    state = ServerState({4: np.full(len(deltas[0]), start)})
    for delta in deltas:
        state = step(
            OptimizerSettings(**settings),
            state,
            {4: np.array(delta)},
            {4: np.array(SCALES[: len(delta)])},
            {4: WEIGHT_EDGE},
        )
    return state.master[4]


def test_fedavg() -> None:
    expected = [1.0 + 0.5 * sum(column) for column in zip(*DELTAS, strict=True)]
    assert run(DELTAS, learning_rate=0.5).tolist() == expected


def test_fedavgm() -> None:
    expected = []
    for column in zip(*DELTAS, strict=True):
        weight, velocity = 1.0, 0.0
        for delta in column:
            velocity = 0.9 * velocity + delta
            weight += 0.5 * velocity
        expected.append(weight)
    assert (
        run(DELTAS, name=OptimizerName.FEDAVGM, learning_rate=0.5, momentum=0.9).tolist()
        == expected
    )


def test_fedadam_works_in_real_units() -> None:
    rate, b1, b2, tau = 0.01, 0.9, 0.99, 1e-3
    expected = []
    for column, scale in zip(zip(*DELTAS, strict=True), SCALES, strict=True):
        weight, m, v = 1.0 * scale, 0.0, tau**2
        for delta in column:
            m = b1 * m + (1 - b1) * delta * scale
            v = b2 * v + (1 - b2) * (delta * scale) ** 2
            weight += rate * m / (math.sqrt(v) + tau)
        expected.append(weight / scale)
    actual = run(DELTAS, name=OptimizerName.FEDADAM, learning_rate=rate, tau=tau)
    assert actual.tolist() == pytest.approx(expected, rel=1e-14)


def test_small_deltas_add_up_over_rounds() -> None:
    assert np.rint(run([[0.25]] * 3)).tolist() == [2.0]  # 1.75: each alone would round to nothing


def test_no_windup_at_the_edge() -> None:
    pushed = [[100.0]] * 5
    assert np.rint(run(pushed, learning_rate=2.0)).tolist() == [127.0]
    back = run([*pushed, [-0.5]], learning_rate=2.0)
    assert np.rint(back).tolist() == [126.0]
    # The control: without the edge the weight would stay where it is for many rounds.
    assert 1.0 + 2.0 * (5 * 100.0 - 0.5) > 900


def test_a_step_changes_nothing_it_was_given() -> None:
    state = ServerState({4: np.ones(3)}, {4: np.ones(3)}, {4: np.ones(3)})
    for name in OptimizerName:
        step(
            OptimizerSettings(name=name),
            state,
            {4: np.array(DELTAS[0])},
            {4: np.array(SCALES)},
            {4: WEIGHT_EDGE},
        )
    assert all((each[4] == 1).all() for each in (state.master, state.first, state.second))


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"momentum": 1.0},
        {"beta2": -0.1},
        {"tau": 0.0},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        OptimizerSettings(**wrong)  # type: ignore[arg-type]
