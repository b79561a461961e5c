# SPDX-License-Identifier: Apache-2.0
"""Who a request comes from, and what he may: the guards of the server's routes.

A connection proves with its certificate who the device is; the registry says, for each request
anew, whether that device with that key is still welcome.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import ssl
import time
from dataclasses import dataclass
from functools import lru_cache

from aiohttp import web
from cryptography import x509
from cryptography.x509.oid import NameOID

from fedlearn.errors import ProtocolError
from fedlearn.wire.messages import Certificate, Enrolment
from fedlearn_aggregator.identity.authority import key_digest, parse_request
from fedlearn_aggregator.identity.folder import Folder
from fedlearn_aggregator.identity.registry import Device

# Certificates in use at a time are those of one fleet.
_CACHED = 16384


@dataclass(frozen=True, slots=True)
class Peer:
    """What a certificate of our CA says; `key` is the SHA-256 of the device's public key."""

    name: str
    key: bytes
    expires: float


class Access:
    """The guards. Raises ProtocolError 401 for who is not known, 403 for who may not."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._status_token = folder.status_token.encode()
        self._devices: dict[str, Device] = {}
        self._change = -1
        self._seen: dict[str, float] = {}
        self._refresh()

    def require_device(self, request: web.Request, device: str | None = None) -> None:
        """The peer is an enrolled device: this one, if it is named."""
        peer = self._peer(request)
        if peer is None:
            raise ProtocolError(
                "a certificate is needed here", status=401, hint="enrol with a token first"
            )
        if peer.expires < time.time():
            raise ProtocolError(
                "this certificate has expired", status=401, hint="enrol with a new token"
            )
        self._refresh()
        known = self._devices.get(peer.name)
        if known is None or known.key != peer.key:
            raise ProtocolError(
                "this certificate counts no more", status=401, hint="enrol with a new token"
            )
        if known.blocked:
            raise ProtocolError(
                "this device is blocked", status=403, hint="ask who runs the aggregator"
            )
        if device is not None and device != peer.name:
            raise ProtocolError(
                "the certificate is another device's",
                status=403,
                hint="device.name must be the name that was enrolled",
            )
        self._seen[peer.name] = time.time()

    def require_viewer(self, request: web.Request) -> None:
        """The pages for people: from this machine, or with the token of the status pages."""
        local = request.transport and request.transport.get_extra_info("sockname")
        if local and is_loopback(str(local[0])):
            return
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, b"Bearer " + self._status_token):
            raise ProtocolError(
                "this page needs a token",
                status=401,
                hint="send 'Authorization: Bearer' with what is in identity/status.token",
            )

    async def certify(self, request: web.Request, device: str, enrolment: Enrolment) -> Certificate:
        """Enrol a device with its token; without one, renew the certificate that it comes with."""
        parsed = parse_request(enrolment.request, device)
        key = key_digest(parsed)
        now = time.time()
        certificate, expires = self._folder.authority.certify_device(parsed, device, now)
        registry = self._folder.registry
        if enrolment.token is not None:
            await asyncio.to_thread(registry.enrol, device, key, enrolment.token, now, expires)
        else:
            self.require_device(request, device)
            if self._devices[device].key != key:
                raise ProtocolError(
                    "a renewal keeps its key", status=422, hint="a new key needs a token"
                )
            await asyncio.to_thread(registry.renewed, device, expires)
        self._change = -1  # data_version tells of other connections' changes alone
        return Certificate(certificate=certificate)

    async def note_seen(self) -> None:
        """Write down when devices were heard of last."""
        seen, self._seen = self._seen, {}
        if seen:
            await asyncio.to_thread(self._folder.registry.saw, seen)

    def _refresh(self) -> None:
        """Read the devices again if anybody has changed the file."""
        change = self._folder.registry.change()
        if change != self._change:
            self._devices = {each.name: each for each in self._folder.registry.devices()}
            self._change = change

    def _peer(self, request: web.Request) -> Peer | None:
        connection = request.transport and request.transport.get_extra_info("ssl_object")
        if not isinstance(connection, ssl.SSLObject):
            return None
        der = connection.getpeercert(binary_form=True)
        return _read(der) if der else None


def is_loopback(address: str) -> bool:
    """Whether an IP address is one of this machine's own loopback."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


@lru_cache(_CACHED)
def _read(der: bytes) -> Peer:
    """OpenSSL has verified it: of our CA, for clientAuth."""
    certificate = x509.load_der_x509_certificate(der)
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    expires = certificate.not_valid_after_utc.timestamp()
    return Peer(str(name.value), key_digest(certificate), expires)
