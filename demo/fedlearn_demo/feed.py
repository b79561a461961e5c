# SPDX-License-Identifier: Apache-2.0
"""What the aggregator tells of its rounds: `GET /v1/status`, as any monitor would read it."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

from fedlearn.agent.trust import Trust
from fedlearn.errors import FedlearnError, NetworkError
from fedlearn_demo.link import connection
from fedlearn_demo.rounds import Round


class Feed:
    """Finds the aggregator by the file that `serve` leaves in its data directory."""

    def __init__(self, data_dir: Path, trust: Trust) -> None:
        self._announcement = data_dir / "serve.json"
        self._trust = trust
        self._rounds: dict[int, Round] = {}
        self._connection: http.client.HTTPConnection | None = None
        self.url = ""
        self.doing = "starting"

    def connect(self) -> bool:
        """Whether the aggregator answers by now."""
        try:
            self.url = json.loads(self._announcement.read_bytes())["url"]
        except FileNotFoundError:
            return False
        self._connection = connection(self.url, self._trust)
        self.poll()
        return True

    def poll(self) -> list[Round]:
        """Return the rounds that are closed and judged, in order; `doing` tells of the next.

        Raises FedlearnError when a round failed: it has to have an update of every device.
        """
        assert self._connection
        try:
            self._connection.request("GET", "/v1/status")
            status = json.loads(self._connection.getresponse().read())
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(f"the aggregator does not answer: {error}") from error
        self.doing = _doing(status)
        for row in status["rounds"]:
            if row["state"] == "abandoned":
                raise FedlearnError(
                    f"round {row['number']} was abandoned: a device did not deliver"
                )
            if row["state"] == "closed" and row["accuracy"] is not None:
                self._rounds[row["number"]] = round_of(row)
        return [self._rounds[number] for number in sorted(self._rounds)]


def round_of(row: dict[str, Any]) -> Round:
    """A row of `/v1/status`."""
    # A round opens when the one before it closes; the first one waits for somebody to come.
    began = row["started"] if row["number"] == 1 else row["opened"]
    return Round(
        number=row["number"],
        devices=row["updates"],
        accuracy=row["accuracy"],
        loss=row["loss"],
        bytes_up=tuple(row["bytes_up"]),
        bytes_down=tuple(row["bytes_down"]),
        wall_s=row["closed"] - began,
        slowest_train_s=row["slowest_train_s"],
        model=row["result"],
    )


def _doing(status: dict[str, Any]) -> str:
    newest = status["rounds"][-1]
    match newest["state"]:
        case "open":
            return "waiting for devices"
        case "training":
            return f"training: {newest['updates']} of {status['cohort']} updates are in"
        case "aggregating":
            return "aggregating"
    return "testing the last model"
