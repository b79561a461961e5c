# SPDX-License-Identifier: Apache-2.0
"""What needs OE-core or a package registry is skipped where there is none, and says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlearn_qemu.layer import registry
from tests.layer.real import Release, releases_in

NO_OE = "needs OE-core: make layer-check OE=<folder of checkouts>"


@pytest.fixture(scope="session")
def oe() -> list[Release]:
    """The releases whose checkouts are at hand."""
    folder = os.environ.get("OE")
    if not folder:
        pytest.skip(NO_OE)
    return releases_in(Path(folder))


@pytest.fixture(scope="session")
def fetched() -> Callable[[registry.Source], Path]:
    """Download a source, or skip where no registry answers; found out once."""
    unreachable: list[str] = []

    def fetch(source: registry.Source) -> Path:
        if unreachable and not list(registry.CACHE.glob(source.pattern)):
            pytest.skip(unreachable[0])
        try:
            return registry.fetch(source)
        except registry.UnreachableError as error:
            unreachable.append(f"checksums are not compared: {error}")
            pytest.skip(unreachable[0])

    return fetch
