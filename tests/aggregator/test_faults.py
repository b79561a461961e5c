# SPDX-License-Identifier: Apache-2.0
"""A fault that lasts is logged when it is new, and then rarely."""

import logging

import pytest

from fedlearn_aggregator.faults import REPEAT_S, Repeated


def test_a_lasting_fault_is_not_a_flood(caplog: pytest.LogCaptureFixture) -> None:
    faults = Repeated(logging.getLogger("test"))
    for second in range(100):
        faults.error("disk full", float(second))
    assert caplog.messages == ["disk full"]
    faults.error("disk gone", 100.0)
    faults.error("disk full", 101.0)
    faults.error("disk full", 101.0 + REPEAT_S)
    assert caplog.messages == ["disk full", "disk gone", "disk full", "disk full"]
