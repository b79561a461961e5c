# SPDX-License-Identifier: Apache-2.0
"""What the agent tells about itself: `status.json`, written anew on each change."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fedlearn.agent.policy import Check
from fedlearn.durable import storage_errors
from fedlearn.errors import FedlearnError
from fedlearn.text import clean


@dataclass(frozen=True, slots=True)
class Status:
    """The agent at one moment. Bytes are those of HTTP bodies; 0 and "" mean: not yet."""

    state: str
    reason: str = ""  # why it is in this state
    pid: int = 0
    device: str = ""
    task: str = ""
    aggregator: str = ""  # URL of the aggregator in use
    round: int = 0  # of the last order
    model: str = ""  # SHA-256 (hex) of the last order's base model
    started: float = 0.0  # Unix seconds
    first_training_s: float | None = None  # from the process's start to the first TrainJob
    rounds_trained: int = 0  # updates that the aggregator acknowledged
    bytes_up: int = 0  # of updates, since the start
    bytes_down: int = 0  # of models and differences, since the start
    update_bytes: int = 0  # the last update
    model_download_bytes: int = 0  # the last model, or difference
    accuracy: float | None = None  # of the last round's model on this device's data, 0..1
    accuracy_personal: float | None = None  # of this device's own copy, on the same samples
    loss: float | None = None  # of the last round's model on this device's data
    loss_personal: float | None = None  # of this device's own copy, on the same samples
    trainer_peak_rss_bytes: int = 0
    agent_rss_bytes: int = 0
    last_error: str = ""
    certificate_expires: float = 0.0  # Unix seconds
    memory_allowance_kib: int = 0  # since a training was killed for its memory; 0: it was not
    policy: tuple[Check, ...] = ()  # each limit, and what it says now


def write_status(path: Path, status: Status) -> None:
    """Replace the file atomically. No fsync: it tells of a process that a power cut ends too."""
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors("write", path):
        temporary.write_text(json.dumps(asdict(status), indent=1) + "\n")
        temporary.replace(path)


def read_status(path: Path) -> Status:
    """Read the file of an agent; raise `FedlearnError` when there is none."""
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        known = {field.name for field in fields(Status)}
        given = {name: value for name, value in values.items() if name in known}
        given["policy"] = tuple(Check(**each) for each in given.get("policy", ()))
        return Status(**given)
    except FileNotFoundError as error:
        raise FedlearnError(
            f"there is no {path}", hint="is the agent started, with this configuration?"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FedlearnError(f"cannot read {path}: {error}") from error


def is_alive(status: Status) -> bool:
    """Tell whether the process that wrote the status still runs."""
    try:
        os.kill(status.pid, 0)
    except PermissionError:  # it runs, as another user
        return True
    except (OSError, OverflowError):
        return False
    return status.pid > 0


def rss_bytes() -> int:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def process_age_s() -> float:
    """Return the seconds since this process was started, its interpreter's start included."""
    # The 20th field behind the command's closing parenthesis: start after boot, in ticks (proc(5)).
    fields_after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields_after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def headline(status: Status) -> str:
    """Say in one line what the agent does, and why."""
    state = status.state.replace("_", " ")
    return f"{state}: {status.reason}" if status.reason else state


def describe(status: Status) -> str:
    """Describe the status for a person."""
    alive = is_alive(status)
    lines = [
        ("state", headline(status) if alive else "not running"),
        (
            "device",
            f"{status.device}, task {status.task}" + (f", pid {status.pid}" if alive else ""),
        ),
        ("aggregator", status.aggregator or "none found"),
        ("certificate", _until(status.certificate_expires)),
        ("round", f"{status.round}, model {status.model[:12]}" if status.model else "none yet"),
        ("trained", f"{status.rounds_trained} rounds acknowledged"),
        ("quality", _quality(status)),
        ("network", f"{status.bytes_up} bytes of updates up, {status.bytes_down} of models down"),
        (
            "memory",
            f"agent {status.agent_rss_bytes / 1e6:.0f} MB, "
            f"trainer at most {status.trainer_peak_rss_bytes / 1e6:.0f} MB"
            + (
                f"; a training may need {status.memory_allowance_kib:,} KiB more than the program, "
                "since one was killed for its memory"
                if status.memory_allowance_kib
                else ""
            ),
        ),
        *(("policy" if at == 0 else "", _told(each)) for at, each in enumerate(status.policy)),
        ("last error", status.last_error or "none"),
    ]
    return "\n".join(f"{name:<11} {clean(text)}" for name, text in lines)


def _until(expires: float) -> str:
    return f"until {time.strftime('%Y-%m-%d', time.localtime(expires))}" if expires else "none"


def _told(check: Check) -> str:
    return f"{check.text}: {'allows' if check.allows else 'forbids'}"


def judged(accuracy: float | None, loss: float) -> str:
    """What a model is worth, in words; some losses know no accuracy."""
    return f"loss {loss:.4f}" if accuracy is None else f"accuracy {accuracy:.1%}, loss {loss:.4f}"


def _quality(status: Status) -> str:
    if status.loss is None:
        return "not known"
    text = f"the last round's model on this device's data: {judged(status.accuracy, status.loss)}"
    if status.loss_personal is not None:
        text += f"; its own copy: {judged(status.accuracy_personal, status.loss_personal)}"
    return text
