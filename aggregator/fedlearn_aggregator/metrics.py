# SPDX-License-Identifier: Apache-2.0
"""What Prometheus scrapes, in its text format 0.0.4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fedlearn_aggregator.checkins import CheckIns
from fedlearn_aggregator.coordinator import Coordinator
from fedlearn_aggregator.patience import Patience
from fedlearn_aggregator.rounds import State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Traffic:
    """Counts of one process. Labels are our own words, never a peer's."""

    responses: Counter[tuple[str, str]] = field(default_factory=Counter)  # (route, status)
    body_bytes_in: int = 0
    body_bytes_out: int = 0


def render(
    coordinator: Coordinator, check_ins: CheckIns, traffic: Traffic, patience: Patience
) -> str:
    """The page."""
    current = coordinator.round
    task = {"task": coordinator.task.name}
    lines: list[str] = []

    def family(
        name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]
    ) -> None:
        lines.append(f"# HELP fedlearn_{name} {text}")
        lines.append(f"# TYPE fedlearn_{name} {kind}")
        lines.extend(
            f"fedlearn_{name}{_labels({**task, **labels})} {value!r}" for labels, value in samples
        )

    family("round", "gauge", "Number of the current round.", [({}, current.number)])
    family(
        "round_state",
        "gauge",
        "1 for the state that the current round is in.",
        [({"state": state}, int(state is current.state)) for state in State],
    )
    family("task_finished", "gauge", "1 when no more rounds follow.", [({}, +coordinator.finished)])
    family(
        "seats", "gauge", "Devices with a seat in the current round.", [({}, len(current.seats))]
    )
    family("cohort", "gauge", "Updates that a round waits for.", [({}, current.policy.cohort)])
    family(
        "round_updates",
        "gauge",
        "Updates stored in the current round.",
        [({}, len(current.updates))],
    )
    family("held_checkins", "gauge", "Devices that wait for a seat.", [({}, check_ins.held)])
    family(
        "rounds_ended_total",
        "counter",
        "Rounds ended since the start of this process.",
        [({"state": state}, count) for state, count in sorted(coordinator.ended.items())],
    )
    family(
        "updates_total",
        "counter",
        "Updates received, by what became of them (a number is the status of a refusal).",
        [({"result": result}, n) for result, n in sorted(coordinator.verdicts.items())],
    )
    family(
        "responses_total",
        "counter",
        "HTTP answers.",
        [
            ({"route": route, "status": status}, n)
            for (route, status), n in sorted(traffic.responses.items())
        ],
    )
    family("body_bytes_in_total", "counter", "Bytes of bodies read.", [({}, traffic.body_bytes_in)])
    family("connections", "gauge", "Open connections.", [({}, patience.connections)])
    family(
        "slow_peers_total", "counter", "Connections ended for their slowness.", [({}, patience.cut)]
    )
    family(
        "body_bytes_out_total", "counter", "Bytes of bodies sent.", [({}, traffic.body_bytes_out)]
    )
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
