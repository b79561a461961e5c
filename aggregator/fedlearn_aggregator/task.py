# SPDX-License-Identifier: Apache-2.0
"""A task: one model, what of it is trained, and how. Fixed by `fedlearn-aggregator init`."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from fedlearn.errors import ConfigError
from fedlearn.wire.messages import NAME, OVERSHOOTS, Limits, TrainableTensor, TrainingPlan
from fedlearn_aggregator.aggregation import MAX_SAMPLES
from fedlearn_aggregator.optimizers import OptimizerName, OptimizerSettings
from fedlearn_aggregator.robust import AggregationSettings, Rule
from fedlearn_aggregator.rounds import Policy

# Models stay for devices that come back with an old one and ask for the difference, for evaluation
# and for `export --round`. The starting model stays for good.
KEEP_MODELS = 32
# Updates are needed until their round ends. Those of the last rounds stay for inspection, and for
# devices that did not hear the receipt and send again; of older rounds there is a summary.
KEEP_UPDATES = 2
# An update carries metrics, names and CBOR heads beside its arrays: this much room for them, and
# this much for every tensor and the range of an activation, which takes 60 bytes.
_MESSAGE_BYTES = 4096
_TENSOR_BYTES = 128


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that is fixed for the life of a task.

    `instance` is 8 hexadecimal digits that tell this aggregator from others of the same task.
    `keep_models` counts closed rounds: the models that they began and ended with. `keep_updates`
    counts ended rounds, closed or abandoned. With `rescale` the scales of activations and weights
    follow what the devices measure.
    """

    name: str
    instance: str
    tail: str
    tensors: tuple[TrainableTensor, ...]
    plan: TrainingPlan
    limits: Limits
    policy: Policy
    optimizer: OptimizerSettings
    seed: int
    keep_models: int = KEEP_MODELS
    keep_updates: int = KEEP_UPDATES
    rescale: bool = True
    aggregation: AggregationSettings = field(default_factory=AggregationSettings)

    def __post_init__(self) -> None:
        self.aggregation.check_policy(self.policy.minimum, self.policy.cohort)
        for sound, what in (
            (re.fullmatch(NAME, self.name), "a task's name is 1 to 64 of A-Z a-z 0-9 . _ -"),
            (self.plan.epochs >= 1, "epochs must be at least 1"),
            (self.plan.batch_size >= 1, "batch size must be at least 1"),
            (0 < self.plan.learning_rate < math.inf, "learning rate must be above 0"),
            (not self.plan.overshoots, OVERSHOOTS),
            (1 <= self.limits.samples <= MAX_SAMPLES, f"samples must be 1 to {MAX_SAMPLES}"),
            (0 <= self.seed < 2**64, "the seed must be an unsigned 64-bit number"),
            (self.keep_models >= 1 and self.keep_updates >= 0, "at least one model is kept"),
        ):
            if not sound:
                raise ConfigError(what)

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def round_seed(self, number: int) -> int:
        """The 64-bit seed of a round: the task's seed and the number decide it."""
        digest = hashlib.sha256(self.seed.to_bytes(8, "big") + number.to_bytes(8, "big"))
        return int.from_bytes(digest.digest()[:8], "big")

    def to_json(self) -> str:
        """As it is kept in the store."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Task:
        """The inverse of `to_json`."""
        values: dict[str, Any] = json.loads(text)
        optimizer = values["optimizer"]
        aggregation = values.get("aggregation", {})  # absent before version 0.2
        if "rule" in aggregation:
            aggregation = {**aggregation, "rule": Rule(aggregation["rule"])}
        return cls(
            **{
                **values,
                "tensors": tuple(
                    TrainableTensor(**{**tensor, "shape": tuple(tensor["shape"])})
                    for tensor in values["tensors"]
                ),
                "plan": TrainingPlan(
                    **{**values["plan"], "class_weights": tuple(values["plan"]["class_weights"])}
                ),
                "limits": Limits(**values["limits"]),
                "policy": Policy(**values["policy"]),
                "aggregation": AggregationSettings(**aggregation),
                "optimizer": OptimizerSettings(
                    **{**optimizer, "name": OptimizerName(optimizer["name"])}
                ),
            }
        )


def largest_update(tensors: tuple[TrainableTensor, ...]) -> int:
    """Bytes of the largest honest update: every array plain, 2 bytes a weight and 4 a bias.

    A difference of two int8 may need 9 bits.
    """
    arrays = sum(math.prod(t.shape) * (2 if t.dtype == "int8" else 4) for t in tensors)
    return arrays + len(tensors) * _TENSOR_BYTES + _MESSAGE_BYTES
