# SPDX-License-Identifier: Apache-2.0
"""The aggregator as it must not be: it acknowledges an update, and then puts it on the disk."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from fedlearn_aggregator import cli
from fedlearn_aggregator.coordinator import Coordinator

LATE_S = 0.5
_keep = Coordinator._keep
_late: set[asyncio.Task[None]] = set()


async def keep(self: Coordinator, current: Any, checked: Any) -> None:
    """Come back at once."""

    async def later() -> None:
        await asyncio.sleep(LATE_S)
        await _keep(self, current, checked)

    task = asyncio.create_task(later())
    _late.add(task)
    task.add_done_callback(_late.discard)


Coordinator._keep = keep  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(cli.main())
