# SPDX-License-Identifier: Apache-2.0
"""Key, requests and certificates of a device; `cryptography` is the oracle of openssl's work."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.agent.identity import Identity
from fedlearn.errors import FedlearnError, ProtocolError
from fedlearn_aggregator.identity.authority import DEVICE_DAYS, Authority, parse_request

NOW = 1_800_000_000.0
DAY_S = 86400.0


@pytest.fixture
def authority() -> Authority:
    return Authority.create(NOW - 30 * DAY_S)


@pytest.fixture
def ca(tmp_path: Path, authority: Authority) -> Path:
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.pem)
    return path


def issue(authority: Authority, identity: Identity, name: str, now: float = NOW) -> bytes:
    return authority.certify_device(parse_request(identity.request(), name), name, now)[0]


def test_a_request_is_signed_by_a_p256_key_that_stays(tmp_path: Path) -> None:
    identity = Identity(tmp_path, "pump-07")
    request = x509.load_der_x509_csr(identity.request())
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=pump-07"
    key = request.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    again = x509.load_der_x509_csr(Identity(tmp_path, "pump-07").request())
    assert again.public_key() == key
    assert identity.key.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in identity.request()


def test_a_certificate_is_kept_and_read(tmp_path: Path, authority: Authority, ca: Path) -> None:
    identity = Identity(tmp_path, "pump-07")
    assert identity.certified(ca) is None
    taken = identity.take(issue(authority, identity, "pump-07"))
    assert taken == identity.certified(ca)
    assert (taken.name, taken.issued) == ("pump-07", NOW)
    assert taken.expires == NOW + DEVICE_DAYS * DAY_S
    assert NOW + 200 * DAY_S < taken.renew_from < NOW + 300 * DAY_S
    # Under another name the device is another one.
    assert Identity(tmp_path, "pump-08").certified(ca) is None


def test_what_is_no_certificate_of_ours_is_refused(
    tmp_path: Path, authority: Authority, ca: Path
) -> None:
    identity = Identity(tmp_path / "one", "pump-07")
    other = Identity(tmp_path / "two", "pump-07")
    for each in (identity, other):
        each.key.parent.mkdir()
        each.request()
    good = issue(authority, identity, "pump-07")
    mine = parse_request(identity.request(), "pump-07")
    foreign_name = authority.certify_device(mine, "pump-08", NOW)[0]
    for wrong in (b"", b"hello", good[:-100], issue(authority, other, "pump-07"), foreign_name):
        with pytest.raises(ProtocolError):
            identity.take(wrong)
        assert identity.certified(ca) is None
    assert identity.take(good)  # the control
    with pytest.raises(ProtocolError):
        identity.take(foreign_name)
    assert identity.certified(ca) is not None  # the good one is still there


def test_a_certificate_of_another_ca_is_put_aside(
    tmp_path: Path, authority: Authority, ca: Path
) -> None:
    identity = Identity(tmp_path, "pump-07")
    identity.take(issue(authority, identity, "pump-07"))
    assert identity.certified(ca) is not None
    ca.write_bytes(Authority.create(NOW).pem)
    assert identity.certified(ca) is None
    assert not identity.certificate.exists()
    assert identity.key.exists()


def test_a_damaged_certificate_is_put_aside(tmp_path: Path, authority: Authority, ca: Path) -> None:
    identity = Identity(tmp_path, "pump-07")
    identity.take(issue(authority, identity, "pump-07"))
    identity.certificate.write_bytes(identity.certificate.read_bytes()[:200])
    assert identity.certified(ca) is None
    assert (tmp_path / "device.pem.corrupt").exists()
    assert not identity.certificate.exists()


def test_a_damaged_key_gives_way_to_a_new_one(
    tmp_path: Path, authority: Authority, ca: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It needs a new token then, and its log says which."""
    identity = Identity(tmp_path, "pump-07")
    identity.take(issue(authority, identity, "pump-07"))
    identity.key.write_bytes(identity.key.read_bytes()[:100])
    assert identity.certified(ca) is None
    assert "fedlearn-aggregator tokens --device pump-07" in caplog.text
    assert (tmp_path / "device.key.corrupt").exists()
    identity.take(issue(authority, identity, "pump-07"))
    identity.key.unlink()
    assert identity.certified(ca) is None
    assert "device.key is missing" in caplog.text
    identity.take(issue(authority, identity, "pump-07"))
    assert identity.certified(ca) is not None


def test_without_the_openssl_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FedlearnError, match="openssl command is missing"):
        Identity(tmp_path, "pump-07").request()
