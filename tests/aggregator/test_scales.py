# SPDX-License-Identifier: Apache-2.0
"""Ranges from devices become scales: merged, bounded, in one step with the weights."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.model import Model, fit
from fedlearn.model.rescale import held
from fedlearn.trainer.tails import trainable_tensors
from fedlearn.wire import codec
from fedlearn.wire.messages import ActivationRange, Update
from fedlearn_aggregator import requantise, scales
from fedlearn_aggregator.optimizers import OptimizerName, OptimizerSettings, ServerState
from fedlearn_aggregator.rounds import Policy
from fedlearn_aggregator.task import Task
from tests.aggregator.devices import make_update, start_model
from tests.aggregator.service import Service, blocking, make_task, service

NAMES = ("a", "b", "c", "d")
MODEL = start_model()
LOGITS = MODEL.operators[-1].inputs[0]
DENSE = MODEL.operators[-2].inputs[0]
LOW, HIGH = held(MODEL.tensors[LOGITS])
TENSORS = trainable_tensors(MODEL, "all")
FEDAVG = OptimizerSettings()


def claim(reach: float, clipped: float = 0.5, index: int = LOGITS) -> ActivationRange:
    """Logits that reach so many times as far as int8 does."""
    return ActivationRange(index, LOW * reach, HIGH * reach, clipped)


def fitting(*ranges: ActivationRange) -> Model:
    state = requantise.first_state(MODEL, TENSORS)
    return Model.parse(scales.fit(MODEL, TENSORS, state, state, ranges=ranges, settings=FEDAVG)[1])


def test_the_order_of_arrival_does_not_matter() -> None:
    reports: list[tuple[ActivationRange, ...]] = [
        (claim(reach, reach / 10), claim(-0.0, 0.0, DENSE)) for reach in (1.0, 3.0, 2.0)
    ]
    reports.append((claim(0.0, 0.0),))
    first = scales.merge(reports)
    for order in itertools.permutations(reports):
        assert repr(scales.merge(order)) == repr(first)
    assert [each.index for each in first] == sorted([DENSE, LOGITS])


def test_a_quarter_of_the_devices_moves_nothing_beyond_the_honest() -> None:
    honest = [(claim(reach),) for reach in (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)]
    for liars in (2, 3):
        merged = scales.merge([*honest, *[(claim(1e30, 1.0),)] * liars])
        if liars == 2:
            assert merged[0].high <= HIGH * 1.5
            assert merged[0].low >= LOW * 1.5
        else:  # the control: with a third of the round they decide
            assert merged[0].high > HIGH * 1e6


def test_a_quarter_decides_nothing_where_others_do_not_report() -> None:
    """Eight updates of which five report a range, two of them hostile."""
    honest = [(claim(reach),) for reach in (1.0, 1.1, 1.2)]
    for silent in (3, 0):
        merged = scales.merge([*honest, *[()] * silent, *[(claim(1e30, 1.0),)] * 2])
        if silent:
            assert merged[0].high <= HIGH * 1.2
            assert merged[0].low >= LOW * 1.2
            assert merged[0].clipped == 0.5
        else:  # the control: of five updates, two are more than a quarter
            assert merged[0].high > HIGH * 1e6


def test_what_only_a_minority_measured_is_ignored() -> None:
    assert scales.merge([(claim(2.0),), (), ()]) == ()
    assert len(scales.merge([(claim(2.0),), (claim(2.0),), ()])) == 1
    assert scales.merge([]) == ()


def test_clipping_widens_and_a_fitting_range_stays() -> None:
    wider = fitting(claim(1.5))
    low, high = held(wider.tensors[LOGITS])
    assert HIGH * 1.5 < high < HIGH * 2
    assert LOW * 1.5 > low > LOW * 2
    # Neither clipping below the threshold nor a range that is a little narrow changes a bit.
    for still in (claim(1.5, fit.CLIPPED), claim(0.5, 0.0)):
        assert fitting(still).data == MODEL.data


def test_a_range_far_too_wide_shrinks() -> None:
    width = HIGH - LOW
    low, high = held(fitting(claim(0.05, 0.0)).tensors[LOGITS])
    assert high - low == pytest.approx(width / fit.SHRINKAGE, rel=0.01)
    # It settles, and does not go to and fro.
    assert fitting(claim(1 / fit.WIDE / fit.HEADROOM * 1.01, 0.0)).data == MODEL.data


@pytest.mark.parametrize("reach", [1e3, 1e30, 1.7e308 / -LOW])
def test_absurd_claims_grow_a_range_by_no_more_than_is_allowed(reach: float) -> None:
    low, high = held(fitting(claim(reach, 1.0)).tensors[LOGITS])
    assert high - low <= fit.GROWTH * (HIGH - LOW) * 1.01
    flat = fitting(ActivationRange(LOGITS, 0.0, 0.0, 1.0))
    assert flat.data == MODEL.data


def test_what_is_fixed_stays() -> None:
    wishes = [claim(2.0, 1.0, index) for index in (MODEL.entry, MODEL.outputs[0], 0, 1, 2, 3)]
    assert fitting(*wishes).data == MODEL.data


@pytest.mark.parametrize("name", list(OptimizerName))
def test_the_state_counts_in_the_new_steps(name: OptimizerName) -> None:
    """Real master weights and moments are what they were, whatever grid they count in."""
    rng = np.random.default_rng(2)
    start = requantise.first_state(MODEL, TENSORS)
    master = {i: x + rng.uniform(-0.4, 0.4, x.shape) for i, x in start.master.items()}
    crowded = next(t.index for t in TENSORS if t.shape == (64, 784))
    master[crowded].flat[:900] = 127.0
    moments = {i: rng.normal(size=x.shape) for i, x in master.items()}
    state = ServerState(master, moments, {i: x * x for i, x in moments.items()})
    settings = OptimizerSettings(name)
    # Two channels of a convolution moved far; a dense weight is crowded at the end of its grid.
    far = next(t.index for t in TENSORS if t.shape == (16, 3, 3, 8))
    before = {**master, far: master[far].copy()}
    before[far][[2, 5], 1, 1, 0] -= fit.FAR + 1
    after, data = scales.fit(
        MODEL,
        TENSORS,
        ServerState(before),
        state,
        ranges=[claim(2.0, 1.0, DENSE)],
        settings=settings,
    )
    model = Model.parse(data)
    assert model.tensors[crowded].scale == pytest.approx(
        MODEL.tensors[crowded].scale * fit.COARSER, rel=1e-6
    )
    old, new = (requantise.grid_scales(each, TENSORS) for each in (MODEL, model))
    changed = 0
    for index in master:
        real = state.master[index] * old[index]
        np.testing.assert_allclose(after.master[index] * new[index], real, rtol=3e-7)
        changed += not np.array_equal(old[index], new[index])
        np.testing.assert_array_equal(
            model.array(index), np.rint(after.master[index]).astype(model.array(index).dtype)
        )
        if name is OptimizerName.FEDADAM:
            assert after.first[index] is state.first[index]
        else:
            real = state.first[index] * old[index]
            np.testing.assert_allclose(after.first[index] * new[index], real, rtol=3e-7)
        assert after.second[index] is state.second[index]
    leaps = model.tensors[far].scales / MODEL.tensors[far].scales
    np.testing.assert_allclose(leaps[[2, 5]], fit.LEAP, rtol=1e-6)
    assert (np.delete(leaps, [2, 5]) == 1).all()
    # Two weights with their biases; the bias behind the widened activation.
    assert changed == 5


def ranged(device: str, update: Update) -> Update:
    """With made-up ranges that differ by device."""
    reach = 1.5 + NAMES.index(device) / 4
    return dataclasses.replace(update, ranges=(claim(reach),))


async def run_round(running: Service, names: tuple[str, ...]) -> None:
    for name in names:
        device = running.device(name)
        order = await blocking(device.order)
        model = await blocking(device.model, order.model)
        body = codec.encode(ranged(name, make_update(model, name, order.round)))
        assert (await blocking(device.send, order.round, body)).status == 201
        device.close()


def run(path: Path, task: Task, orders: list[tuple[str, ...]]) -> bytes:
    """The model after one round, whose updates come in this order with a restart in between."""

    async def scenario() -> bytes:
        for number, names in enumerate(orders):
            async with service(path, None if number else task) as running:
                await run_round(running, names)
                while number == len(orders) - 1 and not running.coordinator.finished:
                    await running.coordinator.seats_changed.wait()
                data = running.coordinator.model.data
        return data

    return asyncio.run(scenario())


def one_round(**changes: Any) -> Task:
    return make_task(Policy(4, 4, over_selection=1.0, max_rounds=1), **changes)


def test_a_restart_in_mid_round_and_any_order_give_the_same_scales(tmp_path: Path) -> None:
    expected = run(tmp_path / "1", one_round(), [NAMES])
    _, high = held(Model.parse(expected).tensors[LOGITS])
    assert high > HIGH * 1.5
    assert run(tmp_path / "2", one_round(), [("d", "b"), ("a", "c")]) == expected
    assert run(tmp_path / "3", one_round(), [("c",), ("b", "a"), ("d",)]) == expected


def test_scales_stay_when_the_task_says_so(tmp_path: Path) -> None:
    data = run(tmp_path, one_round(rescale=False), [NAMES])
    assert data != MODEL.data
    after = Model.parse(data)
    for before, tensor in zip(MODEL.tensors, after.tensors, strict=True):
        np.testing.assert_array_equal(before.scales, tensor.scales)


def test_a_task_of_before_loads_and_rescales() -> None:
    task = one_round()
    text = task.to_json().replace(', "rescale": true', "")
    assert text != task.to_json()
    assert Task.from_json(text) == task
    assert not Task.from_json(one_round(rescale=False).to_json()).rescale


def test_the_next_round_trains_on_the_new_grid(tmp_path: Path) -> None:
    """Deltas of the second round are sums of steps of the second model."""

    async def scenario() -> None:
        task = make_task(Policy(4, 4, over_selection=1.0, max_rounds=2))
        async with service(tmp_path, task) as running:
            await run_round(running, NAMES)
            while running.coordinator.round.number == 1:
                await running.coordinator.seats_changed.wait()
            second = running.coordinator.model
            assert second.tensors[LOGITS].scale > MODEL.tensors[LOGITS].scale
            await run_round(running, NAMES)
            while not running.coordinator.finished:
                await running.coordinator.seats_changed.wait()
            assert running.coordinator.model.tensors[LOGITS].scale > MODEL.tensors[LOGITS].scale

    asyncio.run(scenario())
