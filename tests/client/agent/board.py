# SPDX-License-Identifier: Apache-2.0
"""A board's sysfs and procfs, as files that a test writes."""

from __future__ import annotations

from pathlib import Path


class Board:
    """The files below `root`; what is not set is not there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(exist_ok=True)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        temporary = path.with_name(".new")
        temporary.write_bytes(data)
        temporary.replace(path)
        return path

    def temperature(self, celsius: float, zone: int = 0) -> None:
        self.write(f"sys/class/thermal/thermal_zone{zone}/temp", f"{round(celsius * 1000)}\n")

    def battery(self, percent: float, status: str = "Discharging", name: str = "BAT0") -> None:
        folder = f"sys/class/power_supply/{name}"
        self.write(f"{folder}/type", "Battery\n")
        self.write(f"{folder}/capacity", f"{percent}\n")
        self.write(f"{folder}/status", f"{status}\n")

    def plug(self, online: bool, kind: str = "Mains") -> None:
        self.write("sys/class/power_supply/AC/type", f"{kind}\n")
        self.write("sys/class/power_supply/AC/online", f"{int(online)}\n")

    def load(self, load: float) -> None:
        self.write("proc/loadavg", f"{load:.2f} 0.10 0.05 1/83 17573\n")

    def pressure(self, percent: float) -> None:
        text = f"avg10={percent:.2f} avg60=0.00 avg300=0.00 total=2783072"
        self.write("proc/pressure/memory", f"some {text}\nfull {text}\n")

    def memory(self, available_kib: int) -> None:
        self.write(
            "proc/meminfo",
            f"MemTotal:  999999 kB\nMemFree:  1 kB\nMemAvailable:  {available_kib} kB\n",
        )

    def oom_kills(self, count: int) -> None:
        self.write("proc/self/cgroup", "4:memory:/x\n0::/system.slice/fedlearn.service\n")
        self.write(
            "sys/fs/cgroup/system.slice/fedlearn.service/memory.events",
            f"low 0\nhigh 0\nmax 9\noom 1\noom_kill {count}\noom_group_kill 0\n",
        )
