# SPDX-License-Identifier: Apache-2.0
"""Lines of text, as `Serial.println` makes them: one sample a line, its values side by side.

Between the values stand commas, semicolons, tabs or spaces. What is no such line is counted and
leaves a gap; it never stops the stream. Text has no checksum: a digit that the wire turned into
another digit is taken for what it says. Where that matters there is `fedlearn.collect.sequence`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from fedlearn.collect.rules import class_number
from fedlearn.collect.sample import Counts, Item, Sample

# 64 values of 15 characters; whoever sends more without an end sends no lines.
MAX_LINE_BYTES = 1024
# Digits as ASCII has them: `float` alone takes "nan", "1_000" and the digits of every script.
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_SEPARATORS = re.compile(r"\s*[,;]\s*|\s+")


class LineDecoder:
    """Makes samples of bytes, however they are cut into pieces."""

    def __init__(
        self,
        channels: int,
        counts: Counts,
        *,
        labelled: bool = False,
        classes: Sequence[str] = (),
        whole: bool = False,
    ) -> None:
        """`whole`: the stream begins with the beginning of a line, as a file does."""
        self._channels, self._counts = channels, counts
        self._labelled, self._classes = labelled, classes
        self._rest = bytearray()
        # A port is opened in the middle of a line, whose second half may look like a whole one.
        self._skipping, self._half = not whole, not whole

    def feed(self, data: bytes) -> list[Item]:
        """The samples that these bytes complete; None where something was lost."""
        self._counts.bytes += len(data)
        items: list[Item] = []
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._take(line, items)
            if self._skipping:
                self._end_skipping()
            else:
                self._line(bytes(self._rest), items)
            self._rest.clear()
        self._take(rest, items)
        return items

    def end(self) -> list[Item]:
        """What the last line holds when it has no end: a file's."""
        items: list[Item] = []
        if self._rest and not self._skipping:
            self._line(bytes(self._rest), items)
        self._rest.clear()
        return items

    def _take(self, piece: bytes, items: list[Item]) -> None:
        if self._skipping:
            self._counts.garbage_bytes += len(piece)
        elif len(self._rest) + len(piece) > MAX_LINE_BYTES:
            self._counts.overlong += 1
            self._counts.garbage_bytes += len(self._rest) + len(piece)
            self._rest.clear()
            self._skipping = True
            items.append(None)
        else:
            self._rest += piece

    def _end_skipping(self) -> None:
        self._counts.halves += self._half
        self._skipping = self._half = False

    def _line(self, line: bytes, items: list[Item]) -> None:
        try:
            text = line.decode("ascii").strip(" \t\r")
        except UnicodeDecodeError:
            text = "?"
        if not text or text[0] == "#":  # a remark, or a sender's empty line
            return
        sample = self._sample(_SEPARATORS.split(text))
        if sample is None:
            self._counts.garbage += 1
            self._counts.garbage_bytes += len(line) + 1
        else:
            self._counts.samples += 1
        items.append(sample)

    def _sample(self, words: list[str]) -> Item:
        label = None
        if len(words) != self._channels + self._labelled:
            return None
        if self._labelled:
            last = words.pop()
            label = class_number(last, self._classes)
            if label is None and last not in ("-", "-1"):  # the sender knows no label just now
                return None
        if not all(map(_NUMBER.fullmatch, words)):
            return None
        values = tuple(map(float, words))
        # "1e999" is a number, and infinite.
        return Sample(values, label) if all(map(math.isfinite, values)) else None
