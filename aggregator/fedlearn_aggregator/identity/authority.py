# SPDX-License-Identifier: Apache-2.0
"""The certificate authority of one fleet (X.509 v3, RFC 5280; ECDSA with P-256).

It certifies two kinds: the server, by names and addresses, for `serverAuth` alone; and devices, by
the name in the task, for `clientAuth` alone. So no device can pass for the aggregator.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlearn.errors import ProtocolError

# A board is left alone for years, and only a new image or a visit brings it another CA.
CA_DAYS = 20 * 365
# The server renews its own certificate while it runs, a device over the network. A board that was
# switched off for longer needs a new token.
SERVER_DAYS = 90
DEVICE_DAYS = 365
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA's certificate and key. Times are Unix seconds."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, now: float) -> Authority:
        """Make a new one."""
        key = ec.generate_private_key(ec.SECP256R1())
        # Two CAs must not have one name: a chain is looked up by it.
        name = _name(f"fedlearn CA {secrets.token_hex(8)}")
        begin = dt.datetime.fromtimestamp(int(now), dt.UTC)
        subject_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + CA_DAYS * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(subject_id, critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def parse(cls, certificate: bytes, key: bytes) -> Authority:
        """Read both from PEM. Raises ValueError when they are none, or do not belong together."""
        found = x509.load_pem_x509_certificate(certificate)
        private = serialization.load_pem_private_key(key, None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ValueError("the CA's key is none for ECDSA")
        if private.public_key() != found.public_key():
            raise ValueError("the CA's key is not that of its certificate")
        return cls(found, private)

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return _pem(self.certificate)

    @property
    def private_pem(self) -> bytes:
        """The key as PEM."""
        return _private_pem(self.key)

    @property
    def valid_from(self) -> float:
        """When the CA was made."""
        return self.certificate.not_valid_before_utc.timestamp()

    def certify_server(self, names: Iterable[str], now: float) -> tuple[bytes, bytes]:
        """Make a key and a certificate for host names and IP addresses; both as PEM.

        It is valid from the CA's first day on: a device whose clock is some weeks late takes it,
        and nobody can have had it before.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certify(
            _name("fedlearn aggregator"),
            key.public_key(),
            begin=self.valid_from,
            end=now + SERVER_DAYS * _DAY.total_seconds(),
            purpose=ExtendedKeyUsageOID.SERVER_AUTH,
            names=x509.SubjectAlternativeName([_general_name(each) for each in names]),
        )
        return _pem(certificate), _private_pem(key)

    def certify_device(
        self, request: x509.CertificateSigningRequest, device: str, now: float
    ) -> tuple[bytes, float]:
        """Certify the request's key under the device's name; PEM, and when it expires."""
        key = request.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # parse_request
        expires = int(now) + DEVICE_DAYS * _DAY.total_seconds()
        certificate = self._certify(
            _name(device),
            key,
            begin=now,
            end=expires,
            purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
        )
        return _pem(certificate), expires

    def _certify(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        begin: float,
        end: float,
        purpose: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None = None,
    ) -> x509.Certificate:
        ca = self.certificate
        issuer_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(dt.datetime.fromtimestamp(int(begin), dt.UTC))
            .not_valid_after(dt.datetime.fromtimestamp(int(end), dt.UTC))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id),
                critical=False,
            )
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())


def parse_request(der: bytes, device: str) -> x509.CertificateSigningRequest:
    """Read a certificate signing request (PKCS #10, RFC 2986); refuse what is not the device's.

    Raises ProtocolError 422. The request's signature proves that the sender has the key.
    """
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        whole = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise ProtocolError("this is no certificate signing request", status=422) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ProtocolError("the request's key is not one of the curve P-256", status=422)
    if not whole:
        raise ProtocolError("the request is not signed with its own key", status=422)
    if [each.value for each in names] != [device]:
        raise ProtocolError("the request is for another device", status=422)
    return request


def key_digest(holder: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """SHA-256 of the public key (its SubjectPublicKeyInfo): what identifies a device's key."""
    public = holder.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public)
    return digest.finalize()


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    """Raises ValueError for what is neither an address nor ASCII."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
