"""A certificate for 127.0.0.1 that the test's clients trust."""

from __future__ import annotations

import datetime
import ipaddress
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

DAY = datetime.timedelta(days=1)


@cache
def _make(number: int) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"starlight tests {number}")])
    now = datetime.datetime.now(datetime.UTC)
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(number + 1)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def write_certificate(directory: Path, number: int = 0) -> tuple[str, str]:
    """The files of a certificate and its key; another number, another certificate."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    certificate.write_bytes(_make(number)[0])
    key.write_bytes(_make(number)[1])
    key.chmod(0o600)
    return str(certificate), str(key)


def speak_tls(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """From now on every node has a certificate, and every client that asks OpenSSL for authorities trusts it."""
    certificate, key = write_certificate(directory)
    monkeypatch.setenv("STARLIGHT_TLS_CERT", certificate)
    monkeypatch.setenv("STARLIGHT_TLS_KEY", key)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
