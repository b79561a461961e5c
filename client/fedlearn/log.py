# SPDX-License-Identifier: Apache-2.0
"""Logging to stderr, for a terminal and for systemd's journal."""

from __future__ import annotations

import logging
import os
import sys

LEVELS = ("debug", "info", "warning", "error")
# Priorities of syslog(3), which the journal reads from the start of a line (sd-daemon(3)).
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))


def setup(level: str = "info") -> None:
    """Log to stderr from `level` upwards: with the time, except when the journal adds it."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        priority = next((n for level, n in _PRIORITIES if record.levelno >= level), 7)
        return f"<{priority}>{super().format(record)}"
