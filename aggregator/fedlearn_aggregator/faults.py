# SPDX-License-Identifier: Apache-2.0
"""A fault that lasts, in a log that stays readable."""

from __future__ import annotations

import logging

# A full disk is noticed many times a second, and mended by a person hours later.
REPEAT_S = 600.0


class Repeated:
    """Logs an error when it is another than the last one, and then once in `REPEAT_S`."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last = ""
        self._logged_s = 0.0

    def error(self, message: str, now_s: float) -> None:
        """Log `message`, or leave it out; `now_s` are monotonic seconds."""
        if message != self._last or now_s - self._logged_s >= REPEAT_S:
            self._last, self._logged_s = message, now_s
            self._log.error("%s", message)
