# SPDX-License-Identifier: Apache-2.0
"""A CA for one run, and the aggregator's certificate by it, made by the openssl command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedlearn_qemu.tools import call

_DAYS = "30"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True, slots=True)
class Authority:
    """The files: `ca` goes to the devices, the others to the aggregator."""

    ca: Path
    certificate: Path
    key: Path


def make(folder: Path, address: str) -> Authority:
    """Make a CA that certifies the aggregator at an IPv4 address."""
    call(
        [
            *("openssl", "req", "-x509", *_KEY, "-days", _DAYS, "-subj", "/CN=fedlearn-qemu CA"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
            *("-keyout", "ca.key", "-out", "ca.pem"),
        ],
        cwd=folder,
    )
    request = ["openssl", "req", "-new", *_KEY, "-subj", "/CN=aggregator"]
    call([*request, "-keyout", "server.key", "-out", "server.csr"], cwd=folder)
    extensions = folder / "extensions"
    extensions.write_text(f"subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth\n", "utf-8")
    call(
        [
            *("openssl", "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-days", _DAYS, "-out", "server.pem", "-extfile", "extensions"),
        ],
        cwd=folder,
    )
    return Authority(folder / "ca.pem", folder / "server.pem", folder / "server.key")
