# SPDX-License-Identifier: Apache-2.0
"""The folder `identity` of a data directory.

ca.pem, ca.key            the CA; devices get ca.pem, the key never leaves
server.pem, server.key    the server's certificate, renewed while it serves
registry.sqlite           tokens and devices
status.token              opens the status pages from other machines
"""

from __future__ import annotations

import datetime as dt
import secrets
import socket
import ssl
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Self

import ifaddr
from cryptography import x509

from fedlearn.agent.trust import NO_CHECK_TIME
from fedlearn.durable import storage_errors, sync_directory, write_durably
from fedlearn.errors import ConfigError
from fedlearn_aggregator.identity.authority import SERVER_DAYS, Authority
from fedlearn_aggregator.identity.registry import FILE_NAME, Registry

NAME = "identity"
# The server's certificate is renewed with a third of its life left.
RENEW_BEFORE_S = SERVER_DAYS * 86400 / 3
# No board of ours is older: what shows an earlier year has lost its clock, and a CA made now would
# count from then.
_EARLIEST = dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp()


class Folder:
    """An identity folder that is there; `close` closes its registry."""

    def __init__(self, path: Path, authority: Authority, registry: Registry) -> None:
        self.path = path
        self.authority = authority
        self.registry = registry

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises ConfigError when it is not there or damaged, StorageError when the disk fails."""
        if not any((path / name).exists() for name in ("ca.key", "ca.pem")):
            raise ConfigError(
                f"{path.parent} holds no identity",
                hint="restore a copy of its folder `identity`, or begin a task with init; "
                "--insecure serves without, for a trial on this machine",
            )
        for name, lost in (
            ("ca.key", "no device could be certified"),
            ("ca.pem", "no device would know the server"),
            (FILE_NAME, "every device needs a new token without it (touch makes an empty one)"),
        ):
            if not (path / name).exists():
                raise ConfigError(f"{path / name} is gone", hint=f"restore a copy: {lost}")
        _make_status_token(path)
        with storage_errors("read", path):
            certificate, key = (path / "ca.pem").read_bytes(), (path / "ca.key").read_bytes()
        try:
            authority = Authority.parse(certificate, key)
        except ValueError as error:
            raise ConfigError(
                f"{path} cannot be used: {error}", hint="restore ca.pem and ca.key from a copy"
            ) from error
        return cls(path, authority, Registry(path / FILE_NAME))

    def close(self) -> None:
        """Close the registry."""
        self.registry.close()

    @property
    def ca(self) -> Path:
        """The file that devices get."""
        return self.path / "ca.pem"

    @property
    def status_token(self) -> str:
        """What opens the status pages from other machines."""
        with storage_errors("read", self.path):
            return (self.path / "status.token").read_text("ascii").strip()

    def server_context(self) -> ssl.SSLContext:
        """TLS 1.3 alone (RFC 8446). A peer may come without a certificate, but only to get one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_OPTIONAL
        # `Access` looks at the dates. asyncio drops the alert of a handshake that fails: a device
        # whose certificate has expired would never learn why nobody speaks to it.
        context.verify_flags |= NO_CHECK_TIME
        # A resumed session would keep a certificate beyond its end, and devices hold connections.
        context.num_tickets = 0
        self.load_server(context)
        return context

    def load_server(self, context: ssl.SSLContext) -> None:
        """Let new connections have the certificate that is in the folder now."""
        with storage_errors("read", self.path):
            context.load_cert_chain(self.path / "server.pem", self.path / "server.key")

    def renew_server(self, now: float) -> bool:
        """Make a certificate if there is none, its end is near, or it lacks a name; tell whether.

        Both go into one file's rename each, key first: between them `load_server` fails, and the
        next `renew_server` mends it.
        """
        names = self._names()
        if self._server_serves(names, now):
            return False
        certificate, key = self.authority.certify_server(names, now)
        write_durably(self.path / "server.key", key, mode=0o600)
        write_durably(self.path / "server.pem", certificate)
        return True

    def _names(self) -> list[str]:
        return list(dict.fromkeys([*_names_here(), *self.registry.server_names()]))

    def _server_serves(self, names: Iterable[str], now: float) -> bool:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            self.load_server(context)
            certificate = x509.load_pem_x509_certificate((self.path / "server.pem").read_bytes())
            alternatives = certificate.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            ).value
        except Exception:  # whatever is wrong with it, a new one mends it
            return False
        named = {str(each.value) for each in alternatives}
        left_s = certificate.not_valid_after_utc.timestamp() - now
        return left_s > RENEW_BEFORE_S and named.issuperset(names)


def ensure(path: Path, now: float, *, template: Path | None = None) -> bool:
    """Make the folder if it is not there; tell whether it was made.

    `template`: a folder of another data directory to begin with a copy of. Raises ConfigError when
    that is none, or when the clock is plainly wrong; StorageError when the disk fails.
    """
    if (path / "ca.key").exists():
        if template is not None:
            raise ConfigError(f"{path} is there already", hint="leave --identity out")
        return False
    if template is not None:
        template = _found(template)
    with storage_errors("write", path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if template is not None:
            _copy(template, path)
            return True
    if now < _EARLIEST:
        raise ConfigError(
            "the clock is wrong: certificates made now would count from "
            f"{dt.datetime.fromtimestamp(now, dt.UTC):%Y-%m-%d}",
            hint="set the clock, or wait until it is synchronised",
        )
    authority = Authority.create(now)
    Registry(path / FILE_NAME).close()
    _make_status_token(path)
    write_durably(path / "ca.pem", authority.pem)
    # The last one: with it the folder is complete.
    write_durably(path / "ca.key", authority.private_pem, mode=0o600)
    return True


def _found(template: Path) -> Path:
    """The folder itself, or that of a data directory."""
    for each in (template, template / NAME):
        if (each / "ca.key").exists():
            return each
    raise ConfigError(
        f"there is no identity in {template}", hint="name the folder that holds ca.pem and ca.key"
    )


def _make_status_token(path: Path) -> None:
    token = path / "status.token"
    if not token.exists():
        write_durably(token, f"{secrets.token_urlsafe(24)}\n".encode(), mode=0o600)


def _copy(template: Path, path: Path) -> None:
    with closing(Folder.open(template)):  # a fault shows now, not at the first device
        pass
    for name in (FILE_NAME, "status.token", "ca.pem", "ca.key"):
        if not (template / name).exists():
            raise ConfigError(f"{template} has no {name}", hint="is it a folder `identity`?")
        write_durably(path / name, (template / name).read_bytes(), mode=0o600)
    sync_directory(path)


def _names_here() -> list[str]:
    """What this machine is called, and its loopback addresses.

    Devices that find the server by mDNS check no name; those with a configured URL do.
    """
    name = socket.gethostname()
    found = ["localhost", "127.0.0.1", "::1"]
    if name and name.isascii():
        found += [name, name if "." in name else f"{name}.local"]
    for adapter in ifaddr.get_adapters():
        found += [str(each.ip) for each in adapter.ips if each.is_IPv4]
    return list(dict.fromkeys(found))
