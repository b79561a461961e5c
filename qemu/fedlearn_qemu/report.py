# SPDX-License-Identifier: Apache-2.0
"""The figures of a run, as a table and as JSON. MB is 10^6 bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from rich.table import Table

from fedlearn.agent.status import Status
from fedlearn.text import counted
from fedlearn_aggregator.report import RoundReport
from fedlearn_qemu.device import Memory

_MB = 1e6


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device; times in seconds."""

    name: str
    image: str
    samples: int
    ready_s: float  # from the kernel's start to the agent's READY=1, by the guest's clock
    updates: int  # that the aggregator acknowledged
    bytes_up: int
    agent_rss_mb: float
    service_peak_mb: float  # agent and trainer, by the control group, with page cache
    trainer_peak_mb: float
    state: str

    @classmethod
    def of(
        cls, name: str, image: str, samples: int, *, ready_s: float, status: Status, memory: Memory
    ) -> DeviceReport:
        """From what the guest told."""
        return cls(
            name=name,
            image=image,
            samples=samples,
            ready_s=round(ready_s, 1),
            updates=status.rounds_trained,
            bytes_up=status.bytes_up,
            agent_rss_mb=round(memory.agent_rss_bytes / _MB, 1),
            service_peak_mb=round(memory.service_peak_bytes / _MB, 1),
            trainer_peak_mb=round(memory.trainer_peak_bytes / _MB, 1),
            state=status.state,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run."""

    image_mb: dict[str, float]
    network: str
    devices: tuple[DeviceReport, ...]
    rounds: tuple[RoundReport, ...]
    first_update_s: float  # from the command's start
    wall_s: float

    @property
    def accepted(self) -> int:
        """Updates that are in closed rounds."""
        return sum(each.updates for each in self.rounds if each.state == "closed")

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> Table:
        """All devices in one table."""
        table = Table(
            title=f"{counted(len(self.devices), 'emulated device')}, "
            f"{' and '.join(self.image_mb)}; memory in MB",
            padding=(0, 0),
        )
        headings = "device samples ready-s updates kB-up agent trainer service state"
        for heading in headings.split():
            left = heading in ("device", "state")
            table.add_column(heading, justify="left" if left else "right", no_wrap=True)
        for each in self.devices:
            table.add_row(
                each.name,
                str(each.samples),
                f"{each.ready_s:.1f}",
                str(each.updates),
                f"{each.bytes_up / 1000:.1f}",
                f"{each.agent_rss_mb:.1f}",
                f"{each.trainer_peak_mb:.1f}",
                f"{each.service_peak_mb:.1f}",
                each.state,
            )
        return table
