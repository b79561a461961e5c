# SPDX-License-Identifier: Apache-2.0
"""The device's key, made here by the image's openssl command, and the certificate it enrols for.

    device.key    ECDSA with P-256, PKCS #8 in PEM; it never leaves the device
    device.pem    the certificate (X.509) of the aggregator's CA

Both are in the state directory, on the data partition: a new image on the board keeps them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlearn.agent.state import set_aside
from fedlearn.durable import publish, storage_errors, write_durably
from fedlearn.errors import FedlearnError, ProtocolError

# A slow board under emulation takes a second.
_TIMEOUT_S = 20.0
# A certificate is renewed with a third of its life left: months, for a board that is seldom on.
_RENEW_AT = 2 / 3
logger = logging.getLogger(__name__)

_WORDS = {"notBefore": "issued", "notAfter": "expires", "subject": "name"}


@dataclass(frozen=True, slots=True)
class Certified:
    """What the device's certificate says. Times are Unix seconds."""

    name: str
    issued: float
    expires: float

    @property
    def renew_from(self) -> float:
        """When to ask for the next one."""
        return self.issued + (self.expires - self.issued) * _RENEW_AT


class Identity:
    """Key and certificate of the device called `name`, in `directory`."""

    def __init__(self, directory: Path, name: str) -> None:
        self.key = directory / "device.key"
        self.certificate = directory / "device.pem"
        self._name = name

    def certified(self, ca: Path) -> Certified | None:
        """What the certificate says; None without a usable one of `ca` for this device's name.

        A server says no word to whoever comes with a certificate of a foreign CA.
        """
        if not self.certificate.exists() or not self._has_key():
            return None
        try:
            self.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
            _openssl("verify", "-no_check_time", "-CAfile", str(ca), str(self.certificate))
            found = _read(self.certificate)
        except (OSError, ValueError, FedlearnError) as error:
            set_aside(self.certificate, "device.pem.corrupt", f"cannot be used: {error}")
            return None
        return found if found.name == self._name else None

    def load_into(self, context: ssl.SSLContext) -> None:
        """Let the context's connections prove who this is. Raises OSError."""
        context.load_cert_chain(self.certificate, self.key)

    def request(self) -> bytes:
        """A certificate signing request (PKCS #10, DER). The first one makes the key.

        Raises FedlearnError when the openssl command is missing or fails, StorageError.
        """
        if not self._has_key():
            made = _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
            write_durably(self.key, made, mode=0o600)
        subject = f"/CN={self._name}"  # a device's name has nothing to quote
        return _openssl(
            *("req", "-new", "-config", os.devnull, "-key", str(self.key)),
            *("-subj", subject, "-outform", "DER"),
        )

    def _has_key(self) -> bool:
        """Whether there is a usable key; one that is damaged is put aside, with its certificate."""
        why = "is missing"
        if self.key.exists():
            try:
                _openssl("pkey", "-in", str(self.key), "-noout")
            except FedlearnError as error:
                why = "is damaged"
                set_aside(self.key, "device.key.corrupt", f"cannot be used: {error}")
            else:
                return True
        if self.certificate.exists():
            logger.warning(
                "device.key %s: this device makes a new one, and needs a token made for it "
                "(fedlearn-aggregator tokens --device %s)",
                why,
                self._name,
            )
            set_aside(self.certificate, "device.pem.corrupt", "it is of a key that is gone")
        return False

    def take(self, certificate: bytes) -> Certified:
        """Keep the certificate that the aggregator issued.

        Raises ProtocolError when it is none, or for another key or name; StorageError.
        """
        draft = self.certificate.with_name("device.pem.new")
        write_durably(draft, certificate)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(draft, self.key)
            found = _read(draft)
        except (OSError, ValueError, FedlearnError) as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise ProtocolError("the aggregator sends no certificate for this key") from error
        if found.name != self._name:
            raise ProtocolError("the aggregator sends another device's certificate")
        with storage_errors("write", self.certificate):
            publish(draft, self.certificate)
        return found


def _read(path: Path) -> Certified:
    """Raises ValueError for dates and names that are none."""
    shown = _openssl(
        *("x509", "-in", str(path), "-noout", "-startdate", "-enddate"),
        *("-subject", "-nameopt", "RFC2253"),
    )
    lines = dict(line.split("=", 1) for line in shown.decode().splitlines())
    found = {_WORDS[word]: value for word, value in lines.items() if word in _WORDS}
    return Certified(
        name=found["name"].removeprefix("CN="),
        issued=ssl.cert_time_to_seconds(found["issued"]),
        expires=ssl.cert_time_to_seconds(found["expires"]),
    )


def _openssl(*arguments: str) -> bytes:
    command: Sequence[str] = ("openssl", *arguments)
    # No configuration of the machine's, and no state of its own.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "OPENSSL_CONF": os.devnull}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=_TIMEOUT_S,
            env=environment,
        )
    except FileNotFoundError as error:
        raise FedlearnError(
            "the openssl command is missing", hint="apt install openssl; in an image: openssl-bin"
        ) from error
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        reason = said.decode(errors="replace").strip().splitlines()[-1:] or [str(error)]
        raise FedlearnError(f"openssl {arguments[0]} failed: {reason[0]}") from error
    return done.stdout
