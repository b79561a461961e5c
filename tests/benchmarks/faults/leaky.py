# SPDX-License-Identifier: Apache-2.0
"""The aggregator as it must not be: it keeps every update in memory, and a file open for each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fedlearn_aggregator import cli, updates

_check = updates.check
_kept: list[Any] = []


def check(*arguments: Any) -> Any:
    """Keep what was checked."""
    checked = _check(*arguments)
    _kept.append((checked, Path("/proc/self/status").open()))  # noqa: SIM115
    return checked


setattr(updates, "check", check)  # noqa: B010 - to a type checker they differ

if __name__ == "__main__":
    sys.exit(cli.main())
