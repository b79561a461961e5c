# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the collecting process's tests."""

from tests.client.collect.harness import device, port

__all__ = ["device", "port"]
