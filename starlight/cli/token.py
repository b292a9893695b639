"""The command ``starlight token``: make a token for development, and say what a server would make of one.

A secret never stands on the command line, which everybody on a machine can read; it comes from a file or from the
environment. A token to check comes from standard input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Annotated, Any, Final

import typer

from starlight.cli.options import EXIT_REFUSED, complain, make_app

__all__ = ["app"]

TOKEN_READ_BYTES: Final = 1 << 20
KEY_READ_BYTES: Final = 1 << 16

app = make_app("Make and check tokens, for development.")

SecretFile = Annotated[str, typer.Option("--secret-file", metavar="FILE", help="The server's --jwt-secret-file.")]
Issuer = Annotated[str, typer.Option("--issuer", metavar="TEXT", help="The issuer (iss).")]
Audience = Annotated[str, typer.Option("--audience", metavar="TEXT", help="The audience (aud).")]
GroupsClaim = Annotated[str, typer.Option("--groups-claim", metavar="TEXT", help="The claim that names groups.")]


@app.command(short_help="Print a new token.")
def new(
    user: Annotated[str, typer.Option("--user", metavar="USER", help="Whom it lets in (sub).")],
    secret_file: SecretFile = "",
    private_key_file: Annotated[
        str, typer.Option("--private-key-file", metavar="FILE", help="A private key in PEM instead of a secret.")
    ] = "",
    algorithm: Annotated[
        str, typer.Option("--algorithm", metavar="NAME", help="HS256 with a secret, else what the key is for.")
    ] = "",
    group: Annotated[list[str] | None, typer.Option("--group", metavar="NAME", help="A group; repeatable.")] = None,
    ttl: Annotated[str, typer.Option("--ttl", metavar="DURATION", help="How long it is good.")] = "1h",
    issuer: Issuer = "",
    audience: Audience = "",
    groups_claim: GroupsClaim = "groups",
    token_id: Annotated[str, typer.Option("--id", metavar="TEXT", help="Its name (jti); random unless given.")] = "",
) -> int:
    """Print a token that is signed with a secret (--secret-file, or STARLIGHT_JWT_SECRET) or a private key."""
    import secrets

    import jwt

    from starlight.config.units import parse_duration
    from starlight.errors import ConfigError
    from starlight.protocols.native.commands import is_user

    try:
        if not is_user(user):
            raise ConfigError("--user", user, "a user name: 1-255 bytes without control characters")
        now = int(time.time())
        claims: dict[str, Any] = {"sub": user, "iat": now, "exp": now + round(parse_duration(ttl, "--ttl"))}
        claims["jti"] = token_id or secrets.token_hex(8)
        if group:
            claims[groups_claim] = group
        claims |= {name: value for name, value in (("iss", issuer), ("aud", audience)) if value}
        key, chosen = _signing_key(secret_file, private_key_file, algorithm)
    except ConfigError as error:
        return complain(str(error))
    try:
        print(jwt.encode(claims, key, chosen))
    except (jwt.PyJWTError, NotImplementedError, TypeError, ValueError):
        return complain(f"--algorithm {chosen}: it does not fit the key, or needs pip install 'starlight[jwt]'")
    return 0


def _signing_key(secret_file: str, private_key_file: str, algorithm: str) -> tuple[bytes, str]:
    from starlight.auth.session_tokens import read_secret
    from starlight.config.file import read_file
    from starlight.errors import ConfigError

    if private_key_file:
        pem = read_file(private_key_file, "--private-key-file", KEY_READ_BYTES)
        return pem, algorithm or _fitting(pem)
    if secret_file:
        return read_secret(secret_file, "--secret-file"), algorithm or "HS256"
    secret = os.environ.get("STARLIGHT_JWT_SECRET", "")
    if not secret:
        raise ConfigError("--secret-file", "", "a file with the secret; `openssl rand -base64 48 > FILE` makes one")
    return secret.encode(), algorithm or "HS256"


def _fitting(pem: bytes) -> str:
    """The first algorithm that a private key is for."""
    import jwt

    for name in ("RS256", "ES256", "ES384", "ES512", "EdDSA"):
        try:
            jwt.encode({}, pem, name)
        except (jwt.PyJWTError, NotImplementedError, TypeError, ValueError):
            continue
        return name
    return "RS256"


@app.command(short_help="Say what a token says, and whether a server would accept it.")
def check(
    secret_file: SecretFile = "",
    key_file: Annotated[str, typer.Option("--key-file", metavar="FILE", help="The server's --jwt-key-file.")] = "",
    jwks_url: Annotated[str, typer.Option("--jwks-url", metavar="URL", help="The server's --jwt-jwks-url.")] = "",
    algorithms: Annotated[str, typer.Option("--algorithms", metavar="LIST", help="Algorithms to accept.")] = "",
    issuer: Issuer = "",
    audience: Audience = "",
    leeway: Annotated[str, typer.Option("--leeway", metavar="DURATION", help="How far clocks may differ.")] = "10s",
    groups_claim: GroupsClaim = "groups",
) -> int:
    """Read a token from standard input, and say who it lets in or why it does not; exit code 1 if it does not.

    The options are those of the server without their jwt- in front; a secret may also come from STARLIGHT_JWT_SECRET.
    """
    import asyncio

    from starlight.auth.identity import make_verifier
    from starlight.config.settings import Settings
    from starlight.errors import ConfigError, KeysUnavailable, TokenRefused

    words = {
        "jwt_secret_file": secret_file,
        "jwt_key_file": key_file,
        "jwt_jwks_url": jwks_url,
        "jwt_algorithms": algorithms,
        "jwt_issuer": issuer,
        "jwt_audience": audience,
        "jwt_leeway_s": leeway,
        "jwt_groups_claim": groups_claim,
    }
    token = sys.stdin.read(TOKEN_READ_BYTES).strip()
    if not token:
        return complain("expected a token on standard input")

    try:
        settings = Settings(auth="jwt", **{name: word for name, word in words.items() if word})
        claims = asyncio.run(make_verifier(settings).verify(token))
    except ConfigError as error:
        return complain(str(error))
    except TokenRefused as refusal:
        print(f"refused: {refusal.reason}")
        return EXIT_REFUSED
    except KeysUnavailable:
        return complain(f"--jwks-url {jwks_url}: no keys could be fetched")
    left_s = claims.expires - settings.jwt_leeway_s - time.time()
    shown = {"user": claims.user, "groups": list(claims.groups), "id": claims.token_id, "expires_in_s": round(left_s)}
    print(f"accepted: {json.dumps(shown)}")
    return 0
