# SPDX-License-Identifier: Apache-2.0
"""What to train within a memory budget: a sparse update.

Training needs memory for the features of the prefix, for activations that wait for the backward
pass, and for gradients. A bias needs no activation, so the earlier layers of a network can move
their biases alone (Cai et al. 2020, "TinyTL"; Lin et al. 2022, "On-Device Training Under 256KB
Memory", section 3.2, which call a choice of layers and tensors a sparse update). The choice here
is greedy: first the last layer, then the weights of as many layers before it as fit, since those
near the output matter most for a new task; what is left goes to the biases of the layers before.

The memory of a choice is not computed from a formula but measured: the self-test, the judging and
one step of a batch are run and what NumPy allocates is counted.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from fedlearn.errors import ConfigError, ModelError, UnsupportedOperatorError
from fedlearn.model import Model, Operator
from fedlearn.runtime import is_litert
from fedlearn.trainer.loss import make_loss
from fedlearn.trainer.prefix import Prefix
from fedlearn.trainer.ranges import RangeMeter
from fedlearn.trainer.section import take
from fedlearn.trainer.selftest import SAMPLES, prove
from fedlearn.trainer.tail import Tail
from fedlearn.trainer.tails import longest, parameters, weighted_operators
from fedlearn.trainer.training import JUDGED_BATCH
from fedlearn.wire.messages import TrainableTensor, TrainingPlan

_KIB = 1024
# A choice whose step alone needs so many budgets ends the search: longer ones need more, and a
# small board may not even live through the measuring.
_HOPELESS = 2.0
# Floats of a batch in a network that is worth measuring: 1 GiB. Damaged files ask for more.
_MOST_VALUES = 1 << 28


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that training needs: the peak at any time, and the features of all samples."""

    step_bytes: int
    feature_bytes: int

    @property
    def total(self) -> int:
        """Both together, in KiB, rounded up."""
        return -(-(self.step_bytes + self.feature_bytes) // _KIB)


@dataclass(frozen=True, slots=True)
class Choice:
    """What is trained, what it needs, and the reasons, a sentence each."""

    tensors: tuple[TrainableTensor, ...]
    need: Need
    reasons: tuple[str, ...]


def measure(model: Model, tensors: Collection[int], plan: TrainingPlan, samples: int) -> Need:
    """What training these tensors on so many samples needs.

    The program itself and the runtime's arena come on top.
    """
    loss = make_loss(plan.loss, model, plan.class_weights)
    is_litert()  # imports the runtime, which is no part of what is measured
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        tail = Tail(model, tensors, absorbed=loss.absorbed, errors=plan.errors)
        batch = min(plan.batch_size, samples)
        if tail.values() * batch > _MOST_VALUES:
            raise ModelError(f"a step of {batch} samples does not fit into any board")
        shape = model.tensors[model.entry].shape[1:]
        inputs = np.zeros((min(SAMPLES, samples), *shape), np.int8)
        Prefix(model, tail.entries, inputs, batch=batch).features(inputs)
        prove(tail, model, inputs, batch=batch)
        tail.thaw(plan.fraction_bits, anchored=plan.proximal > 0)
        features = tuple(
            np.zeros((batch, *model.tensors[number].shape[1:]), np.int8) for number in tail.entries
        )
        with RangeMeter(tail.layers):
            tail.forward(take(features, np.arange(min(JUDGED_BATCH, batch))), keeps=False)
        best = tail.snapshot() if plan.patience else []
        outputs = tail.forward(features)
        # Any errors do: the memory does not depend on them.
        tail.backward(np.ones_like(outputs))
        tail.update(0.0)
        del best
        _, peak = tracemalloc.get_traced_memory()
    except ValueError as error:  # shapes that no converter writes
        raise ModelError(f"the model is damaged: {error}") from error
    finally:
        if not was_tracing:
            tracemalloc.stop()
    # The samples themselves are in memory whatever is trained.
    made = [number for number in tail.entries if number != model.entry]
    sizes = [prod(model.tensors[number].shape[1:]) for number in made]
    return Need(peak - before, sum(sizes) * samples)


def choose(
    model: Model,
    plan: TrainingPlan,
    budget_kib: int,
    samples: int,
    allowed: Collection[int] | None = None,
) -> Choice:
    """Pick tensors that train within `budget_kib` KiB on so many samples.

    `allowed` are the tensors to pick from, all by default. Raises ConfigError when not even the
    last layer's bias fits.
    """
    layers = weighted_operators(model)
    groups = [
        [each for each in parameters(model, op) if allowed is None or each.index in allowed]
        for op in reversed(layers[len(layers) - longest(model) :])
    ]
    groups = [group for group in groups if group]
    if not groups:
        raise UnsupportedOperatorError("no layer of this model can be trained")

    @cache
    def measured(numbers: tuple[int, ...]) -> Need | None:
        try:
            return measure(model, numbers, plan, samples)
        except MemoryError:  # there is less than the budget allows
            return None

    def need(tensors: Sequence[TrainableTensor]) -> Need | None:
        return measured(tuple(each.index for each in tensors))

    whole, chosen = _most([], groups, budget_kib, need)
    rest = [_biases(group) for group in groups[whole:]]
    biases, chosen = _most(chosen, rest, budget_kib, need)
    if not chosen:
        least = need(rest[0] or groups[0])
        if least is None:
            raise MemoryError
        raise ConfigError(
            f"nothing can be trained within {budget_kib:,} KiB: the least needs "
            f"{least.total:,} KiB",
            hint="raise the budget, or use smaller batches or fewer samples",
        )
    got = measure(model, [each.index for each in chosen], plan, samples)
    more = sum(map(bool, rest[:biases]))
    reasons = [
        f"{whole} of {len(layers)} layers with weights train whole"
        + (f", {more} more their biases alone" if more else ""),
        f"a step needs {got.step_bytes / _KIB:,.0f} KiB and the features of {samples:,} samples "
        f"{got.feature_bytes / _KIB:,.0f} KiB: {got.total:,} of {budget_kib:,} KiB",
    ]
    if whole < len(groups):
        name = groups[whole][0].name
        larger = need([*chosen, *groups[whole]])
        reasons.append(
            f"with the weights of {name} it would be {larger.total:,} KiB"
            if larger
            else f"for the weights of {name} this machine has too little memory"
        )
    elif len(groups) < len(layers):
        reasons.append("the layers before have no backward pass, or are not to be trained")
    return Choice(tuple(sorted(chosen, key=_order(layers))), got, tuple(reasons))


def _most(
    chosen: list[TrainableTensor],
    groups: Sequence[list[TrainableTensor]],
    budget_kib: int,
    need: Callable[[Sequence[TrainableTensor]], Need | None],
) -> tuple[int, list[TrainableTensor]]:
    """Add the longest run of groups with which all fits; how many, and all that is chosen then.

    `need` returns None where measuring itself ran out of memory.

    A longer run may need less: the features of an early layer can be smaller than of a later one.
    """
    count, best, tried = 0, chosen, list(chosen)
    for number, group in enumerate(groups, 1):
        if not group:
            continue
        tried = [*tried, *group]
        needed = need(tried)
        if needed is None:
            break
        if needed.total <= budget_kib:
            count, best = number, tried
        elif needed.step_bytes > _HOPELESS * budget_kib * _KIB:
            break
    return count, best


def _biases(group: Sequence[TrainableTensor]) -> list[TrainableTensor]:
    return [each for each in group if each.dtype == "int32"]


def _order(layers: Sequence[Operator]) -> Callable[[TrainableTensor], int]:
    """Execution order, the weight before its bias."""
    places = {
        number: 2 * at + (slot > 1)
        for at, operator in enumerate(layers)
        for slot, number in enumerate(operator.inputs)
        if slot
    }
    return lambda tensor: places[tensor.index]
