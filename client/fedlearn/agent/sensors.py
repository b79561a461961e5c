# SPDX-License-Identifier: Apache-2.0
"""What the board tells of itself in sysfs and procfs.

A sensor that is not there, fails or talks nonsense reads as None; nothing here raises. What files
there are and what they mean: Documentation/ABI/testing/sysfs-class-power and sysfs-class-thermal,
Documentation/accounting/psi.rst and admin-guide/cgroup-v2.rst of the kernel, proc(5).
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from fedlearn.agent.policy import Readings
from fedlearn.config import PolicyConfig

ROOT = Path("/")
# A file of sysfs has at most a page; of procfs these are the first lines.
_MAX_BYTES = 4096
# Disabled sensors read 0 K or 2^31 and the like: outside of this no board works.
_COLDEST_C, _HOTTEST_C = -60.0, 200.0


def read(limits: PolicyConfig, root: Path = ROOT) -> Readings:
    """Read what the limits are about, and nothing else."""
    power = limits.on_mains_only or limits.min_battery_percent is not None
    on_mains, battery = _power(root) if power else (None, None)
    return Readings(
        on_mains=on_mains,
        battery_percent=battery,
        temperature_c=_temperature_c(root) if limits.max_temperature_c is not None else None,
        load=_load(root) if limits.max_load_per_core is not None else None,
        memory_pressure_percent=(
            _memory_pressure(root) if limits.max_memory_pressure_percent is not None else None
        ),
        available_memory_kib=(
            _available_kib(root) if limits.min_available_memory_kib is not None else None
        ),
        minute=_minute() if limits.window is not None else None,
        cores=os.cpu_count() or 1,
    )


def oom_kills(root: Path = ROOT) -> int | None:
    """How many processes of this one's control group (v2) the kernel has killed for memory."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            group = root / "sys/fs/cgroup" / line[len("0::/") :]
            count = _number(_field(_text(group / "memory.events"), "oom_kill "))
            return None if count is None else int(count)
    return None


def _power(root: Path) -> tuple[bool | None, float | None]:
    """Whether the board is on mains, and how full the emptiest of its batteries is."""
    plugs: list[bool] = []
    charges: list[float] = []
    discharging: list[bool] = []
    for supply in _folders(root / "sys/class/power_supply"):
        kind = _text(supply / "type").strip()
        if _text(supply / "scope").strip() == "Device":  # of a mouse
            continue
        if kind == "Battery":
            charge = _number(_text(supply / "capacity"))
            if charge is not None and 0 <= charge <= 100:
                charges.append(charge)
            state = _text(supply / "status").strip()
            if state in ("Charging", "Discharging", "Full", "Not charging"):
                discharging.append(state == "Discharging")
        elif kind:
            online = _number(_text(supply / "online"))
            if online is not None:
                plugs.append(online > 0)
    on_mains = None
    if plugs:
        on_mains = any(plugs)
    elif discharging:
        on_mains = not any(discharging)
    return on_mains, min(charges, default=None)


def _temperature_c(root: Path) -> float | None:
    """The hottest of the thermal zones."""
    found = []
    for zone in _folders(root / "sys/class/thermal"):
        milli_c = _number(_text(zone / "temp")) if zone.name.startswith("thermal_zone") else None
        if milli_c is not None and _COLDEST_C <= milli_c / 1000 <= _HOTTEST_C:
            found.append(milli_c / 1000)
    return max(found, default=None)


def _load(root: Path) -> float | None:
    """Processes that want to run, the average over about a minute."""
    load = _number(_text(root / "proc/loadavg").partition(" ")[0])
    return None if load is None or load < 0 else load


def _memory_pressure(root: Path) -> float | None:
    """Share of the last ten seconds in which some process waited for memory."""
    share = _number(_field(_text(root / "proc/pressure/memory"), "some avg10="))
    return None if share is None or not 0 <= share <= 100 else share


def _available_kib(root: Path) -> float | None:
    available = _number(_field(_text(root / "proc/meminfo"), "MemAvailable:"))
    return None if available is None or available < 0 else available


def _minute() -> int:
    time.tzset()  # the zone may have been set since the agent was started
    now = time.localtime()
    return now.tm_hour * 60 + now.tm_min


def _text(path: Path) -> str:
    """The start of the file; empty when it cannot be read."""
    try:
        with path.open("rb", buffering=0) as stream:
            return (stream.read(_MAX_BYTES) or b"").decode("ascii", "replace")
    except (OSError, ValueError):  # ValueError: a NUL in a name
        return ""


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _field(text: str, start: str) -> str:
    """The word behind `start` at the beginning of a line."""
    for line in text.splitlines():
        if line.startswith(start):
            return next(iter(line[len(start) :].split()), "")
    return ""


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
