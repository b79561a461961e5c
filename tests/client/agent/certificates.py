# SPDX-License-Identifier: Apache-2.0
"""Throw-away CAs and server certificates, made by the openssl command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_EXTENSIONS = """
[server]
subjectAltName = {names}
extendedKeyUsage = serverAuth
[client]
subjectAltName = {names}
extendedKeyUsage = clientAuth
"""


@dataclass(frozen=True)
class Authority:
    directory: Path

    @property
    def file(self) -> Path:
        return self.directory / "ca.pem"

    def server_context(
        self, names: str = "IP:127.0.0.1,DNS:localhost", *, usage: str = "server", days: int = 2
    ) -> ssl.SSLContext:
        """Make a key and a certificate for `names`, and the context of a server with them."""
        (self.directory / "extensions").write_text(_EXTENSIONS.format(names=names))
        self._openssl(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
            "-keyout key.pem -out request.pem -subj /CN=aggregator"
        )
        self._openssl(
            f"x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -days {days} "
            f"-CAcreateserial -extfile extensions -extensions {usage} -out cert.pem"
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "cert.pem", self.directory / "key.pem")
        return context

    def _openssl(self, arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments.split()], cwd=self.directory, check=True, capture_output=True
        )


def make_authority(directory: Path) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed: apt install openssl")
    directory.mkdir()
    authority = Authority(directory)
    authority._openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        "-keyout ca-key.pem -out ca.pem -subj /CN=test-ca "
        "-addext keyUsage=critical,keyCertSign,cRLSign"
    )
    return authority
