# SPDX-License-Identifier: Apache-2.0
"""Asks the sensors and the policy whether training is allowed, and remembers the last answer."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from fedlearn.agent import sensors
from fedlearn.agent.policy import OwnLoad, Verdict, judge
from fedlearn.agent.stop import Interruption
from fedlearn.config import PolicyConfig

# Heat and batteries are slower; the pressure's average is over ten seconds.
INTERVAL_S = 5.0

logger = logging.getLogger(__name__)


class Forbidden(Interruption):
    """The policy forbids to train now."""


class Permission:
    """To train, by the device's policy. `threads` are those of a training."""

    def __init__(self, limits: PolicyConfig, threads: int, root: Path = sensors.ROOT) -> None:
        self._limits = limits
        self._root = root
        self._own_load = OwnLoad(threads, time.monotonic())
        self._absent: set[str] = set()
        self.verdict = Verdict()

    def ask(self, *, training: bool = False) -> Verdict:
        """Read what the limits are about and judge it. A sensor that is absent is told once."""
        own_load = self._own_load.lasted(time.monotonic(), training=training)
        readings = sensors.read(self._limits, self._root)
        before, self.verdict = (
            self.verdict,
            judge(self._limits, readings, self.verdict, training=training, own_load=own_load),
        )
        for check in self.verdict.checks:
            if check.value is None and check.name not in self._absent:
                self._absent.add(check.name)
                logger.warning("the policy cannot tell: %s; it holds nothing back", check.text)
        if before.allows and not self.verdict.allows:
            logger.info("the policy forbids training: %s", self.verdict.reason)
        elif not before.allows and self.verdict.allows:
            logger.info("the policy allows training again")
        return self.verdict

    def trained(self) -> None:
        """Note that a training ran since the last question."""
        self._own_load.lasted(time.monotonic(), training=True)

    def demand(self, *, training: bool = False) -> None:
        """Raise `Forbidden` unless training is allowed."""
        if not self.ask(training=training).allows:
            raise Forbidden
