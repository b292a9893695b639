"""Who a client is, and what it may do: the two seams between the hub and any scheme of authentication.

An `Authenticator` turns a login message into an `Identity` or refuses it by raising `CloseConnection`. `NoAuth`
believes what the login says; `TokenAuth` wants a JSON Web Token, or a session token that the node has made itself.
`Permissions` is asked before a command is executed; without one everybody who is logged in may do everything, which is
the default without tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from starlight import close_codes
from starlight.auth.session_tokens import PREFIX, Sessions, make_sessions, read_secret
from starlight.config.addresses import is_loopback
from starlight.config.file import read_file
from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings
from starlight.ends import Named
from starlight.errors import CloseConnection, ConfigError, KeysUnavailable, TokenRefused
from starlight.protocols.native.commands import Login, is_user

if TYPE_CHECKING:
    from starlight.auth.jwks import FetchedKeys
    from starlight.auth.tokens import Keys, StaticKeys, Verifier

__all__ = [
    "TOKEN_SOURCES",
    "Action",
    "Authenticator",
    "Identity",
    "NoAuth",
    "Permissions",
    "TokenAuth",
    "make_authenticator",
    "make_verifier",
]

log = logging.getLogger(__name__)

Action = Literal["direct", "join", "publish", "broadcast", "presence"]
"""What a client may ask for that concerns others. Leaving is always allowed."""

TOKEN_SOURCES: Final = ("jwt_secret_file", "jwt_key_file", "jwt_jwks_url", "jwt_secret")
"""Settings that name what tokens are verified with; with ``auth=jwt`` exactly one of them is set."""


class Identity(NamedTuple):
    """Who was logged in.

    Attributes:
        user: the user's name.
        session: a token to log in again with; None lets the hub make one, if it makes any.
        expires: when the identity ends, in Unix seconds; None if it does not.
        groups: the groups it puts the user in.
        issued: when its credential was made, in Unix seconds; 0 if unknown.
        token_id: the credential's name, for revoking it; "" if it has none.
        is_resumed: it comes from a session token, so the login carries no other credential.
    """

    user: str
    session: str | None = None
    expires: float | None = None
    groups: tuple[str, ...] = ()
    issued: float = 0.0
    token_id: str = ""
    is_resumed: bool = False


class Authenticator(Protocol):
    """Decides who a login is."""

    def authenticate(self, login: Login) -> Identity | Awaitable[Identity]:
        """The identity behind a login message, or an awaitable of it where something has to be asked first.

        Raises `CloseConnection`: 4500 for credentials that aren't right, 4501 for a login that lacks them.
        """


class Permissions(Protocol):
    """Decides what a client may do. Called for every command, so it must be quick and must not block."""

    def allows(self, client: Any, action: Action, name: str) -> bool:
        """Whether the hub's `client` may do `action` to `name`: a channel, a user for ``direct``, "" for ``broadcast``.

        Anything but True is a no, and so is an exception, which is logged.
        False is answered with 103 `permission_denied`, the same whether the channel or user exists or not.
        """


class NoAuth:
    """Believes `login.user`. For development, and for nodes that only trusted programs can reach."""

    def authenticate(self, login: Login) -> Identity:
        """The user that the login names. Raises `CloseConnection` 4501 if it names none or an impossible one."""
        user = login.user
        if user is None or not is_user(user):
            raise CloseConnection(close_codes.BAD_REQUEST, detail="the login names no user")
        return Identity(user)


class TokenAuth:
    """Wants `login.token`: a JSON Web Token, or a session token of this node.

    Args:
        verifier: checks JSON Web Tokens.
        sessions: checks session tokens.
    """

    def __init__(self, verifier: Verifier, sessions: Sessions) -> None:
        self._verifier = verifier
        self.sessions = sessions

    def start(self) -> None:
        """Begin to fetch keys where they have to be fetched; from the loop."""
        self._verifier.keys.start()

    def reconfigure(self, settings: Settings) -> Commit:
        """Other keys and rules for logins to come: see `config.reconfigure`. Raises `ConfigError`.

        Keys of the same URL stay, as they needn't be fetched again.
        """
        verifier = make_verifier(settings)
        if verifier.keys.url and _source(verifier.keys) == _source(self._verifier.keys):
            verifier.keys = self._verifier.keys
        adopt_session_keys = self.sessions.reconfigure(settings)

        def commit() -> None:
            self._verifier = verifier
            adopt_session_keys()
            self.start()

        return commit

    async def authenticate(self, login: Login) -> Identity:
        """Who the token says. Raises `CloseConnection`: 4501 without a token, 4500 for a wrong one.

        It waits only where a key has to be fetched; 1013 if that fails.
        """
        if login.token is None:
            raise CloseConnection(close_codes.BAD_REQUEST, detail="the login has no token")
        try:
            return await self.identify(login.token)
        except TokenRefused as refusal:
            raise _refusal(refusal) from None
        except KeysUnavailable:
            raise CloseConnection(close_codes.OVERLOADED, detail="token: no key could be fetched so far") from None

    async def identify(self, token: str) -> Identity:
        """Who a token says. Raises `TokenRefused`, and `KeysUnavailable` if its key can't be fetched."""
        if token.startswith(PREFIX):
            user, groups, expires, issued, token_id = self.sessions.verify(token)
            return Identity(user, None, expires, groups, issued, token_id, True)
        claims = await self._verifier.verify(token)
        return Identity(claims.user, None, claims.expires, claims.groups, claims.issued, claims.token_id)


def _source(keys: Keys) -> tuple[str, tuple[str, ...]]:
    return keys.url, keys.algorithms


def _refusal(refusal: TokenRefused) -> CloseConnection:
    detail = f"token: {refusal.reason}"  # constant text, never part of a token
    close = CloseConnection(close_codes.INVALID_TOKEN, detail=detail)
    close.client = Named(refusal.user)
    return close


def make_authenticator(settings: Settings) -> Authenticator:
    """The authenticator for the setting `auth`.

    Raises `ConfigError` for ``jwt`` with nothing to verify tokens with, and for ``none`` where strangers could connect
    and nobody said that this is meant.
    """
    if settings.auth == "jwt":
        return TokenAuth(make_verifier(settings), make_sessions(settings))
    refuse_strangers(settings, settings.host)
    return NoAuth()


def refuse_strangers(settings: Settings, host: str) -> None:
    """Without authentication: raise `ConfigError` if others can reach the host, unless that is meant; then warn."""
    if is_loopback(host):
        return
    if not settings.insecure_no_auth:
        raise ConfigError("host", host, _OPEN_RULE)
    log.warning("auth=none on %s: whoever reaches this port can be any user", host)


_OPEN_RULE: Final = "a loopback address while auth is none; choose --auth jwt, or --insecure-no-auth to let anybody in"


def make_internal_key(settings: Settings) -> bytes | None:
    """The key of the internal port; None if there is no such port, or nothing can be changed over it.

    Raises `ConfigError` for a key file that is none, and without one where others than this machine could connect.
    """
    if settings.internal_port is None:
        return None
    if settings.internal_key_file:
        return read_secret(settings.internal_key_file, "internal_key_file")
    if not is_loopback(settings.internal_host):
        rule = "a loopback address while there is no --internal-key-file"
        raise ConfigError("internal_host", settings.internal_host, rule)
    return None


def make_verifier(settings: Settings) -> Verifier:
    """What checks JSON Web Tokens, from the settings ``jwt_*``. Raises `ConfigError`."""
    sources = [name for name in TOKEN_SOURCES if getattr(settings, name)]
    if not sources:
        raise ConfigError("auth", "jwt", "something to verify tokens with, one of " + ", ".join(TOKEN_SOURCES))
    if len(sources) > 1:
        raise ConfigError(sources[1], "(set)", f"one of {', '.join(TOKEN_SOURCES)}; {sources[0]} is set, too")
    from starlight.auth.tokens import Rules, Verifier

    keys = _make_keys(settings, sources[0])
    rules = Rules(
        keys.algorithms,
        settings.jwt_issuer,
        settings.jwt_audience,
        settings.jwt_leeway_s,
        settings.jwt_groups_claim,
    )
    return Verifier(keys, rules)


def _make_keys(settings: Settings, source: str) -> StaticKeys | FetchedKeys:
    """The keys that one of `TOKEN_SOURCES` names."""
    from starlight.auth.tokens import ASYMMETRIC, SYMMETRIC, key_pair, secret_keys

    allowed = SYMMETRIC if source in ("jwt_secret", "jwt_secret_file") else ASYMMETRIC
    wanted = settings.jwt_algorithms.replace(",", " ").split()
    for name in wanted:
        if name not in allowed:
            raise ConfigError("jwt_algorithms", settings.jwt_algorithms, f"with {source}, some of {', '.join(allowed)}")
    if source == "jwt_jwks_url":
        from starlight.auth.jwks import FetchedKeys

        return FetchedKeys(settings.jwt_jwks_url, wanted or ASYMMETRIC, wait_s=settings.login_timeout_s)
    if source == "jwt_key_file":
        path = settings.jwt_key_file
        return key_pair(read_file(path, source, _KEY_FILE_LIMIT_BYTES), wanted, source, path)
    if source == "jwt_secret_file":
        return secret_keys(read_secret(settings.jwt_secret_file, source), wanted, source)
    return secret_keys(settings.jwt_secret.get_secret_value().encode(), wanted, source)


_KEY_FILE_LIMIT_BYTES: Final = 64 * 1024
