# SPDX-License-Identifier: Apache-2.0
"""Tokens and devices: what counts, how often, and for how long."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedlearn.errors import ConfigError, ProtocolError, StorageError
from fedlearn_aggregator.identity.registry import DAY_S, FILE_NAME, Registry

NOW = 1_800_000_000.0
LATER = NOW + 365 * DAY_S
KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry(tmp_path / FILE_NAME)) as registry:
        yield registry


def token(registry: Registry, *, days: float = 30, uses: int = 1, device: str | None = None) -> str:
    (made,) = registry.add_tokens(1, NOW + days * DAY_S, NOW, uses=uses, device=device)
    return made


def refusal(registry: Registry, name: str, key: bytes, given: str, now: float = NOW) -> int:
    before = registry.devices()
    with pytest.raises(ProtocolError) as caught:
        registry.enrol(name, key, given, now, LATER)
    assert registry.devices() == before
    return caught.value.status


def test_a_token_takes_one_device_in(registry: Registry) -> None:
    one = token(registry)
    registry.enrol("pump", KEY, one, NOW, LATER)
    (device,) = registry.devices()
    assert (device.name, device.key, device.blocked, device.expires) == ("pump", KEY, False, LATER)
    assert refusal(registry, "lathe", OTHER, one) == 401  # used
    assert registry.unused_tokens(NOW) == 0


def test_the_same_device_may_repeat_itself(registry: Registry) -> None:
    """Its answer may have been lost; who overhears the token has not its key."""
    one = token(registry)
    registry.enrol("pump", KEY, one, NOW, LATER)
    registry.enrol("pump", KEY, one, NOW + 60, LATER + 60)
    assert registry.devices()[0].expires == LATER + 60
    assert refusal(registry, "pump", OTHER, one) == 401
    assert refusal(registry, "pump", KEY, one, NOW + 31 * DAY_S) == 401


@pytest.mark.parametrize("given", ["", "x" * 32])
def test_a_token_that_nobody_made(registry: Registry, given: str) -> None:
    token(registry)
    assert refusal(registry, "pump", KEY, given) == 401


def test_a_token_ends(registry: Registry) -> None:
    one = token(registry, days=30)
    assert refusal(registry, "pump", KEY, one, NOW + 30 * DAY_S + 1) == 401
    registry.enrol("pump", KEY, one, NOW + 30 * DAY_S - 1, LATER)  # the control


def test_one_token_for_several_devices(registry: Registry) -> None:
    many = token(registry, uses=2)
    registry.enrol("pump", KEY, many, NOW, LATER)
    registry.enrol("lathe", OTHER, many, NOW, LATER)
    assert refusal(registry, "kiln", b"k" * 31 + b"!", many) == 401


def test_a_name_belongs_to_the_key_that_came_first(registry: Registry) -> None:
    registry.enrol("pump", KEY, token(registry), NOW, LATER)
    spare = token(registry)
    assert refusal(registry, "pump", OTHER, spare) == 409
    assert registry.unused_tokens(NOW) == 1  # what was refused has used nothing up
    registry.enrol("lathe", OTHER, spare, NOW, LATER)


def test_a_token_for_one_device_replaces_its_key(registry: Registry) -> None:
    """Its card is broken, and the new one makes a new key."""
    registry.enrol("pump", KEY, token(registry), NOW, LATER)
    registry.label("pump", "hall 3")
    bound = token(registry, device="pump")
    assert refusal(registry, "lathe", OTHER, bound) == 401
    registry.enrol("pump", OTHER, bound, NOW, LATER)
    (device,) = registry.devices()
    assert (device.key, device.label) == (OTHER, "hall 3")


def test_a_blocked_device_stays_out(registry: Registry) -> None:
    one = token(registry)
    registry.enrol("pump", KEY, one, NOW, LATER)
    registry.block("pump", blocked=True)
    assert refusal(registry, "pump", KEY, one) == 403
    assert refusal(registry, "pump", KEY, token(registry)) == 403
    assert refusal(registry, "pump", OTHER, token(registry, device="pump")) == 403
    registry.block("pump", blocked=False)
    registry.enrol("pump", KEY, one, NOW, LATER)


def test_a_removed_device_needs_a_new_token(registry: Registry) -> None:
    one = token(registry)
    registry.enrol("pump", KEY, one, NOW, LATER)
    registry.remove("pump")
    assert registry.devices() == []
    assert refusal(registry, "pump", KEY, one) == 401
    registry.enrol("pump", OTHER, token(registry), NOW, LATER)


@pytest.mark.parametrize(
    "change",
    [
        lambda registry: registry.label("ghost", "x"),
        lambda registry: registry.block("ghost", blocked=True),
        lambda registry: registry.remove("ghost"),
    ],
    ids=["label", "block", "remove"],
)
def test_a_device_that_is_not_there(registry: Registry, change: Callable[[Registry], None]) -> None:
    with pytest.raises(ConfigError, match="there is no device ghost"):
        change(registry)


def test_another_process_is_noticed(registry: Registry, tmp_path: Path) -> None:
    registry.enrol("pump", KEY, token(registry), NOW, LATER)
    before = registry.change()
    assert registry.change() == before
    with closing(Registry(tmp_path / FILE_NAME)) as other:
        other.block("pump", blocked=True)
    assert registry.change() != before
    assert registry.devices()[0].blocked


def test_no_token_is_on_the_disk(registry: Registry, tmp_path: Path) -> None:
    tokens = registry.add_tokens(50, LATER, NOW)
    assert len(set(tokens)) == 50
    content = (tmp_path / FILE_NAME).read_bytes()
    assert not [each for each in tokens if each.encode() in content]


def test_what_was_seen_is_kept(registry: Registry) -> None:
    registry.enrol("pump", KEY, token(registry), NOW, LATER)
    registry.saw({"pump": NOW + 5, "ghost": NOW})
    assert [(each.name, each.seen) for each in registry.devices()] == [("pump", NOW + 5)]


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError):
        Registry(tmp_path / FILE_NAME)


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigError, match="newer fedlearn"):
        Registry(tmp_path / FILE_NAME)
