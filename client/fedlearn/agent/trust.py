# SPDX-License-Identifier: Apache-2.0
"""Whom the device believes, and how it proves who it is: TLS 1.3 (RFC 8446), both sides."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from fedlearn.agent.clock import Clock
from fedlearn.agent.endpoint import Endpoint
from fedlearn.agent.identity import Identity
from fedlearn.errors import ConfigError

# X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python has no name for.
NO_CHECK_TIME = 0x200000


@dataclass(frozen=True, slots=True)
class Trust:
    """`ca` alone is trusted, or the system's CAs when there is none.

    With an `identity` that has a certificate the peer is shown it, after it has proved itself.
    """

    ca: Path | None = None
    identity: Identity | None = None
    clock: Clock = field(default_factory=Clock)

    def context(self, endpoint: Endpoint) -> ssl.SSLContext | None:
        """What a connection to the endpoint begins with; None for plain http."""
        if not endpoint.tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = endpoint.named
        if self.ca is None:
            context.load_default_certs()
        else:
            self.clock.learn(load_ca(self.ca, context))
        if self.identity is not None and self.identity.certificate.exists():
            self.identity.load_into(context)
        if self.clock.is_behind:  # `check_dates` looks at what this leaves out
            context.verify_flags |= NO_CHECK_TIME
        return context

    def check_dates(self, connection: ssl.SSLSocket) -> None:
        """Refuse a peer whose certificate has expired by the time that is known.

        OpenSSL has done so already when the system's clock is right. That a certificate is not
        valid yet says nothing here: the CA has signed it. Raises ssl.SSLCertVerificationError.
        """
        if not connection.context.verify_flags & NO_CHECK_TIME:
            return
        peer = connection.getpeercert() or {}
        expires = ssl.cert_time_to_seconds(str(peer["notAfter"]))
        if expires < self.clock.now():
            error = ssl.SSLCertVerificationError("certificate has expired")
            error.verify_message = "certificate has expired"
            raise error


def load_ca(ca: Path, context: ssl.SSLContext) -> float:
    """Trust the CAs of a file; return when the newest of them was made, in Unix seconds.

    Raises ConfigError when it has none.
    """
    try:
        context.load_verify_locations(ca)
    except OSError as error:  # an ssl.SSLError is one, too
        raise ConfigError(
            f"cannot use aggregator.ca {ca}: {error.strerror or error}",
            hint="it must be a PEM file with the CA's certificate",
        ) from error
    made = [ssl.cert_time_to_seconds(str(each["notBefore"])) for each in context.get_ca_certs()]
    return max(made, default=0.0)


def check_ca(ca: Path | None) -> None:
    """Raise ConfigError unless the CA file can be used."""
    if ca is not None:
        load_ca(ca, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
