"""JSON Web Tokens: whether one lets somebody in, and as whom (RFC 7519, with the advice of RFC 8725).

Strategy: the configuration decides which algorithms and keys there are, the token only which of them. Each key is
bound to its algorithm when it is loaded (`PreparedKey`), so a public key can never be taken for a secret. What is cheap
to see is refused before any cryptography: length, shape, header. PyJWT then checks signature and claims, and what it is
lax about is checked again here. `jku`, `x5u`, `jwk` and `x5c` of a header are never looked at.

PyJWT and `cryptography` take a tenth of a second to import, so this module is imported only where tokens are used.
"""

from __future__ import annotations

import hashlib
import math
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import jwt
from jwt.algorithms import Algorithm, HMACAlgorithm
from orjson import JSONDecodeError, loads

from starlight.errors import ConfigError, TokenRefused
from starlight.protocols.native.commands import is_user

__all__ = [
    "ASYMMETRIC",
    "GROUPS_LIMIT",
    "SYMMETRIC",
    "TOKEN_LIMIT_BYTES",
    "Claims",
    "Keys",
    "PreparedKey",
    "Rules",
    "StaticKeys",
    "Verifier",
    "key_pair",
    "secret_keys",
]

TOKEN_LIMIT_BYTES: Final = 8 * 1024
"""The longest token that is looked at. Ordinary ones have under 2 KiB; checking more would be work for strangers."""

SYMMETRIC: Final = ("HS256", "HS384", "HS512")
ASYMMETRIC: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

SECRET_MIN_BYTES: Final = 32
"""As long as HS256's hash (RFC 7518 section 3.2): a shorter secret can be guessed offline from any one token."""

GROUPS_LIMIT: Final = 64
"""Groups a token may name. They are matched against those of the configuration once a channel."""

_KID_LIMIT: Final = 256
_TYPES: Final = frozenset(("jwt", "at+jwt", "application/jwt", "application/at+jwt"))
_LATEST: Final = 2**53
"""Unix seconds that a double still counts; later ones are nonsense."""


class Claims(NamedTuple):
    """What a good token says.

    Attributes:
        user: its `sub`.
        groups: the groups it puts the user in.
        expires: when it ends, in Unix seconds.
        issued: when it was made, in Unix seconds; 0 if it doesn't say, which is before any revocation.
        token_id: its `jti`, or if it has none a hash of what was signed, so that it can be revoked all the same.
    """

    user: str
    groups: tuple[str, ...]
    expires: float
    issued: float = 0.0
    token_id: str = ""


class Rules(NamedTuple):
    """What tokens have to fulfil beside their signature.

    Attributes:
        algorithms: those that are accepted.
        issuer: the only `iss`; "" for any.
        audience: must be in `aud`; "" means that a token with an `aud` is for somebody else, and refused.
        leeway_s: how far clocks may differ, 30 at most.
        groups_claim: the claim with the groups' names, a list or a text with spaces.
    """

    algorithms: tuple[str, ...]
    issuer: str = ""
    audience: str = ""
    leeway_s: float = 10.0
    groups_claim: str = "groups"


class PreparedKey(jwt.PyJWK):
    """A key that is bound to one algorithm, and was checked when it was loaded."""

    def __init__(self, name: str, algorithm: Algorithm, key: Any, kid: str | None = None) -> None:
        self.algorithm_name = name
        self.Algorithm = algorithm
        self.key = key
        self._jwk_data = {"kid": kid}


class _CheckedHMAC(HMACAlgorithm):
    """HMAC for a secret that was checked at start: PyJWT would look at each use whether it is a PEM file after all."""

    def prepare_key(self, key: str | bytes) -> bytes:
        return key if isinstance(key, bytes) else key.encode()


class Keys(Protocol):
    """Where keys come from.

    Attributes:
        url: from which they are fetched; "" for keys of the configuration.
        algorithms: those that tokens may be signed with.
    """

    url: str
    algorithms: tuple[str, ...]

    def find(self, algorithm: str, kid: str | None) -> PreparedKey | None:
        """The key for a token's header; None if there is none."""

    def start(self) -> None:
        """Begin to get keys where that takes time. From the loop."""

    def refresh(self) -> Awaitable[None] | None:
        """An awaitable after which `find` may find more; None if asking again makes no sense.

        The awaitable raises `KeysUnavailable` if it can't be known now whether there is such a key.
        """


class StaticKeys:
    """Keys from the configuration, which do not change: at most one for each algorithm. `kid` is not looked at."""

    def __init__(self, keys: Sequence[PreparedKey]) -> None:
        self.url = ""
        self._by_algorithm = {key.algorithm_name: key for key in keys}
        self.algorithms = tuple(self._by_algorithm)

    def find(self, algorithm: str, kid: str | None) -> PreparedKey | None:
        """The key of that algorithm."""
        return self._by_algorithm.get(algorithm)

    def start(self) -> None:
        """They are there."""

    def refresh(self) -> None:
        """They do not change."""
        return


def secret_keys(secret: bytes, wanted: Sequence[str], key: str) -> StaticKeys:
    """Keys for HS256, HS384 and HS512 from one secret.

    Args:
        secret: its bytes.
        wanted: algorithms; empty for all that the secret is long enough for.
        key: the name of the setting, for errors, which never show the secret.

    Raises `ConfigError` for a secret that is too short, or is a public key.
    """
    if len(secret) < SECRET_MIN_BYTES:
        rule = f"at least {SECRET_MIN_BYTES} bytes, such as `openssl rand -base64 48` prints"
        raise ConfigError(key, "(hidden)", rule)
    keys = []
    for name in wanted or SYMMETRIC:
        checked = _CheckedHMAC(_algorithm(name).hash_alg)
        try:
            HMACAlgorithm.prepare_key(checked, secret)
        except jwt.InvalidKeyError:
            raise ConfigError(key, "(hidden)", "a secret; this is a key for another kind of algorithm") from None
        if not checked.check_key_length(secret):
            keys.append(PreparedKey(name, checked, secret))
        elif wanted:
            raise ConfigError(key, "(hidden)", f"a longer secret: {name} needs as many bytes as its hash has")
    return StaticKeys(keys)


def key_pair(pem: bytes, wanted: Sequence[str], key: str, value: str) -> StaticKeys:
    """Keys from one public key in PEM.

    Args:
        pem: the file's content.
        wanted: algorithms; empty for all that the key fits, but RSA-PSS.
        key: the name of the setting, for errors.
        value: the file's name, for errors.

    Raises `ConfigError` for anything but a public key that is long enough and fits what is wanted.
    """
    if b"PRIVATE KEY" in pem:
        raise ConfigError(key, value, "a public key; the private one belongs to the issuer alone")
    keys = []
    for name in wanted or ASYMMETRIC:
        algorithm = _algorithm(name)
        try:
            loaded = algorithm.prepare_key(pem)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if not algorithm.check_key_length(loaded) and (wanted or not name.startswith("PS")):
            keys.append(PreparedKey(name, algorithm, loaded))
    if not keys or (wanted and len(keys) != len(wanted)):
        fitting = ", ".join(wanted or ASYMMETRIC)
        raise ConfigError(key, value, f"a public key in PEM for {fitting} (RSA: at least 2048 bits)")
    return StaticKeys(keys)


def _algorithm(name: str) -> Any:
    try:
        return jwt.get_algorithm_by_name(name)
    except NotImplementedError:
        raise ConfigError("jwt_algorithms", name, "the package `cryptography`: pip install 'starlight[jwt]'") from None


class Verifier:
    """Says who a token lets in.

    Args:
        keys: where keys come from.
        rules: what tokens have to fulfil.
    """

    def __init__(self, keys: Keys, rules: Rules) -> None:
        self.keys = keys
        self.rules = rules
        self._jwt = jwt.PyJWT({"require": ["exp", "sub"], "enforce_minimum_key_length": True})

    async def verify(self, token: str) -> Claims:
        """The claims of a good token. It waits only where a key has to be fetched first.

        Raises `TokenRefused`, and `KeysUnavailable` if the key can't be fetched.
        """
        algorithm, kid = self._inspect(token)
        key = self.keys.find(algorithm, kid)
        if key is None and (fetching := self.keys.refresh()) is not None:
            await fetching
            key = self.keys.find(algorithm, kid)
        if key is None:
            raise TokenRefused("no such key")
        return self._check(token, key)

    def _inspect(self, token: str) -> tuple[str, str | None]:
        """Algorithm and key id of a token whose shape and header are right; nothing is verified yet."""
        if len(token) > TOKEN_LIMIT_BYTES:
            raise TokenRefused("too long")
        parts = token.split(".")
        if len(parts) != 3 or not token.isascii():
            raise TokenRefused("not a token")
        header = _read_header(parts[0])
        if {"crit", "b64", "zip"} & header.keys():
            raise TokenRefused("a header that is not understood")
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise TokenRefused("a token of another type")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self.rules.algorithms:
            raise TokenRefused("an algorithm that is not allowed")
        kid = header.get("kid")
        if kid is not None and not (isinstance(kid, str) and len(kid) <= _KID_LIMIT):
            raise TokenRefused("a key id that is none")
        return algorithm, kid

    def _check(self, token: str, key: PreparedKey) -> Claims:
        rules = self.rules
        try:
            claims = self._jwt.decode(
                token,
                key,
                [key.algorithm_name],
                audience=rules.audience or None,
                issuer=rules.issuer or None,
                leeway=rules.leeway_s,
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused("expired", is_expired=True, user=_signed_user(token)) from None
        except jwt.PyJWTError as error:
            user = _signed_user(token) if type(error) in _BEHIND_SIGNATURE else None
            raise TokenRefused(_REASONS.get(type(error), "not right"), user=user) from None
        except (ValueError, TypeError, ArithmeticError, RecursionError):
            raise TokenRefused("not right") from None
        found = _to_claims(claims, rules)
        return found if found.token_id else found._replace(token_id=_name_of(token))


def _name_of(token: str) -> str:
    """A name for a token without one. Not of its signature, which for ECDSA has a twin that is as good."""
    return "sha256:" + hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()[:32]


def _signed_user(token: str) -> str | None:
    """The user of a token whose signature is right and which is refused all the same; None if it names none."""
    try:
        user = loads(urlsafe_b64decode(token.split(".")[1] + "==")).get("sub")
    except (JSONDecodeError, ValueError, AttributeError):
        return None
    return user if isinstance(user, str) and is_user(user) else None


def _read_header(part: str) -> dict[str, Any]:
    try:
        header = loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (JSONDecodeError, ValueError):
        raise TokenRefused("not a token") from None
    if not isinstance(header, dict):
        raise TokenRefused("not a token")
    return header


_REASONS: Final[dict[type[jwt.PyJWTError], str]] = {
    jwt.InvalidSignatureError: "the signature is wrong",
    jwt.ImmatureSignatureError: "not valid yet",
    jwt.InvalidAudienceError: "for another audience",
    jwt.InvalidIssuerError: "of another issuer",
    jwt.MissingRequiredClaimError: "exp, sub, iss or aud is missing",
}


_BEHIND_SIGNATURE: Final = frozenset(
    (jwt.ImmatureSignatureError, jwt.InvalidAudienceError, jwt.InvalidIssuerError, jwt.MissingRequiredClaimError)
)
"""Refusals by claims, which PyJWT looks at when the signature is known to be right."""


def _to_claims(claims: dict[str, Any], rules: Rules) -> Claims:
    """The claims we use, each of the type it must have; PyJWT reads "1" and true as times."""
    user = claims["sub"]
    if not is_user(user):
        raise TokenRefused("sub is no user name")
    for name in ("exp", "nbf", "iat"):
        if name in claims and not _is_time(claims[name]):
            raise TokenRefused(f"{name} is no time")
    token_id = claims.get("jti", "")
    if len(token_id) > _KID_LIMIT:
        raise TokenRefused("jti is too long")
    groups = claims.get(rules.groups_claim, ())
    if isinstance(groups, str):
        groups = groups.split()
    if not isinstance(groups, list | tuple) or len(groups) > GROUPS_LIMIT:
        raise TokenRefused("the groups are no short list")
    if not all(isinstance(name, str) for name in groups):
        raise TokenRefused("the groups are no names")
    return Claims(user, tuple(groups), claims["exp"] + rules.leeway_s, claims.get("iat", 0), token_id)


def _is_time(value: object) -> bool:
    """Whether it is a NumericDate that makes sense."""
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= _LATEST  # type: ignore[arg-type, operator]
