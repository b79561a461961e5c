# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from zeroconf import ServiceInfo, ServiceStateChange
from zeroconf.asyncio import AsyncZeroconf

from fedlearn.agent.aggregators import Aggregators, Prove
from fedlearn.agent.discovery import (
    MAX_RESOLVES,
    SERVICE_TYPE,
    _Browser,
    multicast_addresses,
)
from fedlearn.agent.endpoint import Endpoint
from fedlearn.agent.search import SEARCHER, Found, Search
from fedlearn.agent.stop import Stopped, StopSignal
from fedlearn.config import AggregatorConfig
from fedlearn.errors import NetworkError

from .announced import announced, unique_task

LOOPBACK = ["127.0.0.1"]


def first(task: str, time_limit_s: float = 8.0) -> Found | None:
    with Search(task, LOOPBACK, StopSignal(), time_limit_s=time_limit_s) as search:
        return next(iter(search), None)


def test_an_aggregator_of_the_task_is_found_and_no_other() -> None:
    task, other = unique_task(), unique_task()
    with announced((other, 1111), (task, 2222)):
        found = first(task)
        assert found is not None
        assert (found.address, found.port, found.tls) == ("127.0.0.1", 2222, False)
        assert found.instance.startswith(task)
        assert first(unique_task(), 1.0) is None


def test_an_aggregator_that_comes_later_is_heard() -> None:
    task = unique_task()
    with Search(task, LOOPBACK, StopSignal(), time_limit_s=8) as search:
        time.sleep(0.7)  # past the first queries; the next would come seconds later
        with announced((task, 3333)):
            found = next(iter(search))
    assert found.port == 3333


def test_another_version_is_left_alone() -> None:
    task = unique_task()
    with announced((task, 4444), v="2"):
        assert first(task, 1.0) is None


def test_no_such_network_is_an_error_with_a_hint() -> None:
    assert multicast_addresses(["lo"]) == ["127.0.0.1"]  # the control
    with (
        pytest.raises(NetworkError, match=r"192\.0\.2\.7") as caught,
        Search("task", ["192.0.2.7"], StopSignal(), time_limit_s=5) as search,
    ):
        next(iter(search), None)
    assert "aggregator.url" in caught.value.hint


@pytest.mark.parametrize("interface", ["no-such-one", "a-name-that-is-longer-than-any", "é" * 9])
def test_interfaces_that_are_none(interface: str) -> None:
    with pytest.raises(NetworkError, match="no network"):
        multicast_addresses([interface])
    assert multicast_addresses([interface, "lo", "127.0.0.1"]) == ["127.0.0.1"]  # the control


def test_all_interfaces_are_searched_when_none_is_named() -> None:
    """The kernel's own list is the oracle: each interface with a route for multicast."""
    usable = []
    for _, name in socket.if_nameindex():
        with contextlib.suppress(NetworkError):
            usable += multicast_addresses([name])
    assert usable
    assert multicast_addresses([]) == usable


def test_a_flood_of_names_is_bounded_and_hides_no_aggregator(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def flood() -> int:
        task = unique_task()
        browser = _Browser(task)
        stack = AsyncZeroconf(interfaces=LOOPBACK)
        for number in range(20_000):
            name = f"{number}.{SERVICE_TYPE}"
            browser._changed(stack.zeroconf, SERVICE_TYPE, name, ServiceStateChange.Added)
        resolving = len(browser._resolving)
        info = ServiceInfo(
            SERVICE_TYPE,
            f"{task}.{SERVICE_TYPE}",
            addresses=[bytes([127, 0, 0, 1])],
            port=5555,
            properties={"v": "1", "task": task, "tls": "0"},
            server=f"{task}.local.",
        )
        records = [info.dns_pointer(), info.dns_service(), info.dns_text()]
        stack.zeroconf.cache.async_add_records([*records, *info.dns_addresses()])
        browser._changed(stack.zeroconf, SERVICE_TYPE, info.name, ServiceStateChange.Added)
        for each in tuple(browser._resolving):
            each.cancel()
        await stack.async_close()
        return resolving

    assert asyncio.run(flood()) == MAX_RESOLVES
    assert '"port": 5555' in capsys.readouterr().out


def test_the_search_ends_with_its_reader() -> None:
    child = subprocess.Popen(
        [*SEARCHER, "--task=none", "--interface=127.0.0.1", "--time-limit-s=60"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    time.sleep(0.5)
    assert child.poll() is None
    child.stdout.close()
    assert child.wait(5) == 0


def test_the_search_ends_at_its_time_limit() -> None:
    done = subprocess.run(
        [*SEARCHER, "--task=none", "--interface=127.0.0.1", "--time-limit-s=0.3"],
        capture_output=True,
        timeout=8,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# The agent's side, with a program in the place of the child.


def program(*lines: object, then: str = "") -> list[str]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return [sys.executable, "-c", f"print({text!r}, flush=True)\n{then}"]


def found(port: int, tls: bool = False) -> dict[str, object]:
    return {"instance": "task-1", "address": "127.0.0.1", "port": port, "tls": tls}


def search(command: list[str], time_limit_s: float = 5.0) -> list[Found]:
    with Search("task", [], StopSignal(), time_limit_s=time_limit_s, command=command) as running:
        return list(running)


def test_lines_that_make_no_sense_are_skipped() -> None:
    nonsense = ["", "{", "[]", "5", "null", {"address": "x"}, {**found(1), "address": "host"}]
    assert search(program(*nonsense, found(7))) == [Found("task-1", "127.0.0.1", 7, False)]


def test_a_search_that_dies_is_not_just_an_empty_one() -> None:
    assert search(program(then="pass")) == []  # the control
    with pytest.raises(NetworkError, match="failed with exit code 1"):
        search(program(then="raise SystemExit(1)"))


def test_a_stop_ends_the_search_at_once() -> None:
    stop = StopSignal()
    threading.Timer(0.2, stop.request).start()
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(Stopped),
        Search("task", [], stop, time_limit_s=60, command=command) as running,
    ):
        list(running)


def accept(endpoint: Endpoint, timeout_s: float) -> None:
    """Every one can prove itself."""


def choose(
    command: list[str], failed: list[int], prove: Prove = accept, **config: object
) -> Endpoint:
    settings = {"task": "task", "insecure": True, **config}
    aggregators = Aggregators(
        AggregatorConfig(**settings),  # type: ignore[arg-type]
        StopSignal(),
        searcher=command,
    )
    for port in failed:
        aggregators.failed(Endpoint("127.0.0.1", port, tls=False, named=False))
    return aggregators.choose(prove)


def test_one_that_did_not_fail_comes_first_and_then_the_one_that_failed_least() -> None:
    stay = "import time; time.sleep(60)"
    assert choose(program(found(1), found(2), then=stay), []).port == 1
    assert choose(program(found(1), found(2), then=stay), [1]).port == 2
    assert choose(program(found(1), found(2), then=stay), [1, 1, 2]).port == 2


def test_impostors_are_passed_over_in_one_search() -> None:
    """And who was just slow at first is asked again, with more patience."""
    asked: list[tuple[int, float]] = []

    def only(port: int, least_s: float) -> Prove:
        def prove(endpoint: Endpoint, timeout_s: float) -> None:
            asked.append((endpoint.port, timeout_s))
            if endpoint.port != port or timeout_s < least_s:
                raise NetworkError("cannot prove who it is")

        return prove

    lines = program(*(found(port) for port in range(1, 51)))
    assert choose(lines, [], only(50, 0.0)).port == 50
    assert [port for port, _ in asked] == list(range(1, 51))
    asked.clear()
    assert choose(lines, [], only(3, 1.0)).port == 3
    assert len(asked) == 53
    with pytest.raises(NetworkError, match="cannot prove who it is"):
        choose(lines, [], only(51, 0.0))


def test_only_what_can_be_proven_is_chosen() -> None:
    with pytest.raises(NetworkError, match="no aggregator of task task"):
        choose(program(found(1, tls=False)), [], insecure=False, ca=Path("ca.pem"))
    with pytest.raises(NetworkError, match="no aggregator of task task"):
        choose(program(found(1, tls=True)), [], insecure=True)
    tls = choose(program(found(1, tls=True)), [], insecure=False, ca=Path("ca.pem"))
    assert tls == Endpoint("127.0.0.1", 1, tls=True, named=False)


def test_the_known_one_is_tried_again_before_a_new_search() -> None:
    aggregators = Aggregators(
        AggregatorConfig("task", insecure=True),
        StopSignal(),
        "http://127.0.0.1:9",
        searcher=program(found(1)),
    )
    remembered = Endpoint("127.0.0.1", 9, tls=False, named=False)
    assert aggregators.choose(accept) == remembered
    aggregators.failed(remembered)
    assert aggregators.choose(accept) == remembered
    aggregators.failed(remembered)
    assert aggregators.choose(accept).port == 1


def test_a_configured_one_needs_no_search() -> None:
    url = "https://aggregator:8443"
    assert choose(["/does/not/exist"], [], url=url) == Endpoint("aggregator", 8443)
