"""Keys and tokens of a test issuer: right ones, and every way to be wrong."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SECRET = "canary-f3b1c5-a-secret-of-the-tests-that-must-never-be-seen-anywhere-0123456789"
ISSUER, AUDIENCE = "https://issuer.test", "starlight-tests"


def claims(user: str = "ann", **changes: Any) -> dict[str, Any]:
    """Good claims with changes; a change to None leaves the claim out."""
    now = int(time.time())
    good = {"sub": user, "iat": now, "exp": now + 600, "iss": ISSUER, "aud": AUDIENCE, "jti": "j1"}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(user: str = "ann", *, key: Any = SECRET, alg: str = "HS256", headers: Any = None, **changes: Any) -> str:
    """A token that is signed rightly."""
    return jwt.encode(claims(user, **changes), key, alg, headers)


def b64(data: bytes | str | dict[str, Any] | list[Any]) -> str:
    """One part of a token."""
    if not isinstance(data, bytes | str):
        data = json.dumps(data)
    if isinstance(data, str):
        data = data.encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def hmac_token(header: Any, payload: Any, key: bytes | str = SECRET) -> str:
    """Any header over any payload, signed with HMAC-SHA256 whatever the header says."""
    signed = f"{b64(header)}.{b64(payload)}"
    raw = key.encode() if isinstance(key, str) else key
    import hashlib
    import hmac

    return f"{signed}.{b64(hmac.digest(raw, signed.encode(), hashlib.sha256))}"


class Pair:
    """A private key, and the public one in PEM and as a JWK."""

    def __init__(self, private: Any, alg: str) -> None:
        self.alg = alg
        self.private = private
        self.private_pem: bytes = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.public_pem: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.public_der: bytes = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def jwk(self, **fields: Any) -> dict[str, Any]:
        made: dict[str, Any] = jwt.get_algorithm_by_name(self.alg).to_jwk(self.private.public_key(), as_dict=True)
        return {**made, **fields}


def pair(alg: str, number: int = 0) -> Pair:
    """A key pair for an algorithm; another number, another pair."""
    return _make_pair(alg, number)


@cache
def _make_pair(alg: str, number: int) -> Pair:
    if alg.startswith(("RS", "PS")):
        return Pair(rsa.generate_private_key(65537, 2048), alg)
    if alg == "EdDSA":
        return Pair(ed25519.Ed25519PrivateKey.generate(), alg)
    curve = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}[alg]
    return Pair(ec.generate_private_key(curve), alg)


def write(path: Path, content: bytes | str) -> str:
    """A file that only its owner may read."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    return str(path)
