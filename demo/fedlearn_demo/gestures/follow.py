# SPDX-License-Identifier: Apache-2.0
"""Keeps an eye on the processes, and the display alive, while something is waited for."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedlearn.errors import FedlearnError
from fedlearn_demo.display import Display
from fedlearn_demo.feed import round_of
from fedlearn_demo.process import Nursery
from fedlearn_demo.rounds import Round

_LOOK_S = 0.25
_PATIENCE_S = 180.0


class Stage:
    """What goes on, for the display; `complaint` tells of a trouble when nothing goes on."""

    def __init__(self, nursery: Nursery, display: Display, complaint: Callable[[], str]) -> None:
        self._nursery, self._display, self._complaint = nursery, display, complaint
        self.rounds: Sequence[Round] = ()
        self.doing = "starting"

    def pause(self) -> None:
        """Let a little time pass. Raises FedlearnError if a process has ended."""
        self.show()
        time.sleep(_LOOK_S)

    def show(self) -> None:
        """Look at the processes, and show what goes on."""
        self._nursery.check()
        self._display.show(self.rounds, self.doing)

    def wait(self, progress: Callable[[], tuple[bool, Any]]) -> None:
        """Wait until it is done, as long as there is progress: whatever changes."""
        last, since = None, time.monotonic()
        while True:
            done, now = progress()
            if done:
                return
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > _PATIENCE_S:
                hint = self._complaint() or "the logs are in the output folder"
                raise FedlearnError(f"nothing goes on: {self.doing}", hint=hint)
            self.pause()

    def follow(self, aggregator: Path, count: int) -> None:
        """Wait until `count` rounds are closed and judged."""

        known: dict[int, Round] = {}  # the status tells of the last rounds alone

        def progress() -> tuple[bool, Any]:
            rows = _rows(aggregator)
            newest = rows[-1] if rows else {"state": "starting", "updates": 0}
            if newest["state"] == "abandoned":
                raise FedlearnError("a round was abandoned", hint=self._complaint())
            self.doing = f"{newest['state']}: {newest['updates']} updates are in"
            for row in rows:
                if row["state"] == "closed" and row["accuracy"] is not None:
                    known[row["number"]] = round_of(row)
            self.rounds = [known[number] for number in sorted(known)]
            return len(self.rounds) >= count, (len(self.rounds), self.doing)

        self.wait(progress)


def _rows(aggregator: Path) -> list[dict[str, Any]]:
    """Its rounds by `GET /v1/status`, in order; none while it starts."""
    try:
        url = json.loads((aggregator / "serve.json").read_bytes())["url"]
        context = ssl.create_default_context(cafile=aggregator / "identity/ca.pem")
        page = f"{url}/v1/status"
        with urllib.request.urlopen(page, timeout=10, context=context) as reply:  # noqa: S310
            rows: list[dict[str, Any]] = json.loads(reply.read())["rounds"]
    except FileNotFoundError:
        return []
    except (urllib.error.URLError, OSError) as error:
        raise FedlearnError(f"the aggregator does not answer: {error}") from error
    return sorted(rows, key=lambda row: int(row["number"]))
