# SPDX-License-Identifier: Apache-2.0
"""Which aggregator to talk to: the configured one, the known one, or one that mDNS finds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from fedlearn.agent.endpoint import Endpoint, parse_url
from fedlearn.agent.search import SEARCHER, Found, Search
from fedlearn.agent.stop import StopSignal
from fedlearn.config import AggregatorConfig
from fedlearn.errors import ConfigError, NetworkError

# A search holds 25 MB, and what it does not hear within three queries is not there.
SEARCH_S = 10.0
# How long a search waits for another aggregator when all it found have failed before.
SECOND_CHOICE_S = 1.0
# An aggregator that restarts comes back at its address: try it so often before a new search.
TRIES_OF_KNOWN = 2
# On a LAN a connection and a handshake take milliseconds; what is slower gets its turn after those
# that are not, so that one who accepts and then says nothing costs little.
FIRST_TRY_S, SECOND_TRY_S = 0.25, 2.0
# A LAN has a handful of aggregators; beyond that the memory of failures starts anew.
MAX_FAILED = 256
Prove = Callable[[Endpoint, float], None]

logger = logging.getLogger(__name__)


class Aggregators:
    """Chooses among the aggregators of a task, by how they answered so far."""

    def __init__(
        self,
        config: AggregatorConfig,
        stop: StopSignal,
        remembered: str = "",
        *,
        searcher: Sequence[str] = SEARCHER,
    ) -> None:
        self._config = config
        self._stop = stop
        self._searcher = searcher
        self._failures: dict[Endpoint, int] = {}
        self._known = self._parse(remembered)

    def choose(self, prove: Prove) -> Endpoint:
        """Return the one to try now; raise `NetworkError` when there is none, or `Stopped`.

        `prove` connects to what mDNS named, for so many seconds at most, and raises `NetworkError`
        unless it proves to be an aggregator that this device may talk to. So fifty impostors cost
        seconds, and no back-off.
        """
        if self._config.url:
            return parse_url(self._config.url, insecure=self._config.insecure)
        if self._known is None or self._failures.get(self._known, 0) >= TRIES_OF_KNOWN:
            self._known = self._search(prove)
        return self._known

    def is_new(self, endpoint: Endpoint) -> bool:
        """Tell whether nothing is known against it."""
        return endpoint not in self._failures

    def answered(self, endpoint: Endpoint) -> None:
        """Note a proper answer."""
        self._failures.pop(endpoint, None)

    def failed(self, endpoint: Endpoint) -> None:
        """Note that it could not be reached, trusted or understood."""
        if len(self._failures) >= MAX_FAILED:
            self._failures.clear()
        self._failures[endpoint] = self._failures.get(endpoint, 0) + 1

    def _search(self, prove: Prove) -> Endpoint:
        """Return the first find that proves itself and has not failed yet.

        Or else, of those that have failed or were slow to answer, the one that failed least.
        """
        config = self._config
        others: list[Endpoint] = []
        reason: NetworkError | None = None
        with Search(
            config.task,
            config.interfaces,
            self._stop,
            time_limit_s=SEARCH_S,
            command=self._searcher,
        ) as search:
            for found in search:
                endpoint = self._endpoint(found)
                if endpoint is None:
                    continue
                if not self.is_new(endpoint):
                    others.append(endpoint)
                    search.end_within(SECOND_CHOICE_S)
                    continue
                try:
                    prove(endpoint, FIRST_TRY_S)
                except NetworkError as error:
                    logger.debug("%s is left alone for now: %s", found.instance, error)
                    reason = error
                    self.failed(endpoint)
                    others.append(endpoint)
                    continue
                logger.info("found %s at %s", found.instance, endpoint)
                return endpoint
        enough = time.monotonic() + SEARCH_S
        for endpoint in sorted(others, key=lambda each: self._failures.get(each, 0)):
            if time.monotonic() > enough:
                break  # there may be better ones by now
            try:
                prove(endpoint, SECOND_TRY_S)
            except NetworkError as error:
                reason = error
                self.failed(endpoint)
            else:
                return endpoint
        if reason is not None:
            if len(others) > 1:
                logger.warning("none of %d aggregators proves itself, the last:", len(others))
            raise reason
        raise NetworkError(
            f"no aggregator of task {config.task} answers by mDNS",
            hint="is it running, on this LAN? else set aggregator.url",
        )

    def _endpoint(self, found: Found) -> Endpoint | None:
        endpoint = Endpoint(found.address, found.port, found.tls, named=False)
        if self._can_be_trusted(endpoint):
            return endpoint
        logger.warning(
            "%s at %s is left alone: %s",
            found.instance,
            endpoint,
            "aggregator.ca is not set" if found.tls else "it has no TLS",
        )
        return None

    def _parse(self, remembered: str) -> Endpoint | None:
        try:
            endpoint = parse_url(remembered, insecure=self._config.insecure)
        except ConfigError:
            return None
        endpoint = replace(endpoint, named=False)
        return endpoint if self._can_be_trusted(endpoint) else None

    def _can_be_trusted(self, endpoint: Endpoint) -> bool:
        """Whether an aggregator that mDNS named could prove itself.

        That takes a CA of our own: a system's CAs certify anyone, for a name that here anyone
        may choose.
        """
        return self._config.ca is not None if endpoint.tls else self._config.insecure
