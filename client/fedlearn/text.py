# SPDX-License-Identifier: Apache-2.0
"""Text for people, apart from logging, which the trainer does not load."""

from __future__ import annotations

# A peer's text is for one line of a log: room for a sentence, not for a flood.
MAX_PEER_TEXT = 200


def clean(text: object, limit: int = MAX_PEER_TEXT) -> str:
    """Make text of a peer fit for a log: no control or invisible characters, `limit` long."""
    known = str(text)
    shown = "".join(each if each.isprintable() else " " for each in known[:limit])
    return " ".join(shown.split()) + ("..." if len(known) > limit else "")


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 epoch, 1,200 samples."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
