# SPDX-License-Identifier: Apache-2.0
"""Where an aggregator listens, and which places may be spoken to without TLS."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from fedlearn.errors import ConfigError, NetworkError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Host and port of an aggregator.

    `named`: the host comes from the configuration, so the certificate must carry its name. A host
    from mDNS proves nothing, whatever name it chose: there the certificate's issuer decides.
    """

    host: str
    port: int
    tls: bool = True
    named: bool = True

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse_url(url: str, *, insecure: bool) -> Endpoint:
    """Read `https://host:port`, or with `insecure` also `http://`; raise `ConfigError`."""
    hint = "write https://host:port"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"aggregator.url {url!r}: {error}", hint=hint) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"aggregator.url {url!r} is no URL of an aggregator", hint=hint)
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(f"aggregator.url {url!r} has more than a host and a port", hint=hint)
    tls = parts.scheme == "https"
    endpoint = Endpoint(parts.hostname, port or (443 if tls else 80), tls)
    if not tls and not insecure:
        raise ConfigError(
            "aggregator.url is plain http",
            hint="use https; or insecure = true for an aggregator on this machine",
        )
    if not tls and _is_elsewhere(parts.hostname):
        raise ConfigError(
            f"aggregator.url {url!r} is plain http to another machine",
            hint="insecure is for loopback addresses only: use https",
        )
    return endpoint


def _is_elsewhere(host: str) -> bool:
    """Whether it is an address that is not loopback; of a name only the connection can tell."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_plaintext_beyond_loopback(address: str) -> None:
    """Raise `NetworkError` unless the IP address is one of this machine's own loopback."""
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise NetworkError(
            f"{address} is no loopback address, and the connection has no TLS",
            hint="insecure is for one machine only: use https with a certificate",
        )
