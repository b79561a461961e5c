# SPDX-License-Identifier: Apache-2.0
"""Opens the source that the configuration names."""

from __future__ import annotations

from pathlib import Path

from fedlearn.collect.lines import LineDecoder
from fedlearn.collect.sample import Counts, Source
from fedlearn.collect.sequence import SequenceDecoder
from fedlearn.collect.settings import SamplesConfig, SourceConfig


class Opener:
    """Makes a `Source`, again and again: whenever the last one was lost.

    `ring` is where it is remembered which files were read; relative paths start at `base`.
    """

    def __init__(
        self, source: SourceConfig, samples: SamplesConfig, ring: Path, base: Path, counts: Counts
    ) -> None:
        self._source, self._samples, self._counts = source, samples, counts
        self._ring, self._base = ring, base

    def open(self) -> Source:
        """Open it. Raises FedlearnError (or, with one's own class, anything) when it cannot be."""
        kind = self._source.kind
        if kind == "serial":
            # Only here: pyserial, and what it imports, is memory.
            from fedlearn.collect.serialport import SerialSource  # noqa: PLC0415

            return SerialSource(self._source.port, self._source.baud, self._decoder())
        if kind == "own":
            from fedlearn.collect.plugin import OwnSource, find_class  # noqa: PLC0415

            made = find_class(self._source.use, self._base)
            channels = len(self._samples.channels)
            return OwnSource(made, self._source.options, channels, self._counts)
        from fedlearn.collect.files import RECORD, FileSource, PipeSource  # noqa: PLC0415

        if kind == "stdin":
            return PipeSource(0, self._decoder(whole=True))
        assert self._source.path is not None
        return FileSource(self._source.path, self._ring / RECORD, lambda: self._lines(whole=True))

    def _decoder(self, *, whole: bool = False) -> LineDecoder | SequenceDecoder:
        if self._source.format == "lines":
            return self._lines(whole=whole)
        return SequenceDecoder(
            len(self._samples.channels), self._counts, labelled=self._source.labelled
        )

    def _lines(self, *, whole: bool) -> LineDecoder:
        return LineDecoder(
            len(self._samples.channels),
            self._counts,
            labelled=self._source.labelled,
            classes=self._samples.classes,
            whole=whole,
        )
