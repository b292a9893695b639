"""Session tokens: made at login, good for logging in again; when logins end; and which were revoked.

A session token is ours from end to end, so it is no JWT: ``sl1.<body>.<signature>``, one algorithm (HMAC-SHA256), no
header that could choose another, and nothing of it is decoded before the signature was compared. Checking one costs a
tenth of checking a JWT, which counts when 10,000 clients come back at once.

The law: a session never outlives the token it was made from. Only a fresh token of the issuer extends it.
No I/O here but reading the secret file; the clocks are passed in.
"""

from __future__ import annotations

import hmac
import logging
import math
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from orjson import dumps, loads

from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings
from starlight.errors import ConfigError, TokenRefused

__all__ = ["EXPIRING_S", "REVOCATIONS_LIMIT", "Expiries", "Revocations", "SessionClaims", "Sessions", "make_sessions",
           "read_secret"]  # fmt: skip

log = logging.getLogger(__name__)

T = TypeVar("T")

PREFIX: Final = "sl1."
"""What every session token begins with; no JWT does."""

KEY_BYTES: Final = 32

EXPIRING_S: Final = 30.0
"""So long before the end of its login a client is told: time to ask its own backend for a token, even on a slow
network."""

REVOCATIONS_LIMIT: Final = 100_000
"""Users and tokens that can be revoked at a time, at about 150 bytes each."""

SKEW_S: Final = 30.0
"""So far an issuer's clock may be ahead of ours without one of them being wrong: the longest leeway of a token."""

SESSION_LIMIT_BYTES: Final = 12 * 1024
"""The longest session token, made or looked at: that of a token with 8 KiB, all of it groups, and below what a stranger
may say. Longer ones are refused before any cryptography."""

_CONTEXT: Final = b"starlight session 1\x00"
"""Goes into every signature, so that a secret which is used elsewhere, too, signs nothing that we would take."""

SECRET_LIMIT_BYTES: Final = 64 * 1024

_RANDOM_KEY: Final = (
    "no session_secret_file: session tokens are signed with a random key, so a restart ends all sessions"
)


class SessionClaims(NamedTuple):
    """What a session token says: the fields of `tokens.Claims` without the leeway.

    Attributes:
        user: who it is.
        groups: as they were when it was made.
        expires: when it ends, in Unix seconds.
        issued: when the first credential was made, in Unix seconds; 0 if that didn't say.
        token_id: the first credential's, or one of its own.
    """

    user: str
    groups: tuple[str, ...]
    expires: float
    issued: float
    token_id: str


class Sessions:
    """Makes and checks session tokens.

    Args:
        key: at least 32 bytes; None for a random one, which nobody else knows and a restart forgets.
        ttl_s: how long a session lasts at most.
        clock: Unix seconds.
        previous_key: signs nothing, but what it has signed is good: so a key can be replaced and nobody is sent away.
    """

    def __init__(
        self,
        key: bytes | None,
        ttl_s: float,
        clock: Callable[[], float] = time.time,
        *,
        previous_key: bytes | None = None,
    ) -> None:
        self.ttl_s = ttl_s
        self.clock = clock
        self._has_random_key = key is None
        self._key = secrets.token_bytes(KEY_BYTES) if key is None else key
        self._previous_key = previous_key

    def reconfigure(self, settings: Settings) -> Commit:
        """Adopt other keys and another duration: see `config.reconfigure`. Raises `ConfigError`.

        Tokens that neither key has signed are rejected then. A random key stays until a file is named.
        """
        key, previous_key = _read_keys(settings)

        def commit() -> None:
            if key is not None:
                self._key = key
            elif not self._has_random_key:
                log.warning("%s", _RANDOM_KEY)
                self._key = secrets.token_bytes(KEY_BYTES)
            self._has_random_key = key is None
            self._previous_key = previous_key
            self.ttl_s = settings.session_ttl_s

        return commit

    def issue(self, session: SessionClaims) -> str | None:
        """The token for a session; None if it would be too long, as with thousands of groups."""
        body = urlsafe_b64encode(dumps(tuple(session))).rstrip(b"=")
        token = f"{PREFIX}{body.decode()}.{_signature(body, self._key)}"
        return token if len(token) <= SESSION_LIMIT_BYTES else None

    def verify(self, token: str) -> SessionClaims:
        """What a token says. Raises `TokenRefused` for one that we didn't make, or that has ended."""
        if len(token) > SESSION_LIMIT_BYTES:
            raise TokenRefused("too long")
        body, _, signature = token[len(PREFIX) :].partition(".")
        if not (token.startswith(PREFIX) and token.isascii()):
            raise TokenRefused("not a session token")
        if not self._has_signed(body.encode(), signature):
            raise TokenRefused("the signature is wrong")
        user, groups, expires, issued, token_id = loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if expires <= self.clock():
            raise TokenRefused("expired", is_expired=True, user=user)
        return SessionClaims(user, tuple(groups), expires, issued, token_id)

    def _has_signed(self, body: bytes, signature: str) -> bool:
        keys = (self._key,) if self._previous_key is None else (self._key, self._previous_key)
        return any(hmac.compare_digest(signature, _signature(body, key)) for key in keys)


def _signature(body: bytes, key: bytes) -> str:
    return urlsafe_b64encode(hmac.digest(key, _CONTEXT + body, "sha256")).rstrip(b"=").decode()


def make_sessions(settings: Settings) -> Sessions:
    """What makes and checks session tokens. Raises `ConfigError` for a secret file that is none."""
    key, previous_key = _read_keys(settings)
    if key is None:
        log.warning("%s", _RANDOM_KEY)
    return Sessions(key, settings.session_ttl_s, previous_key=previous_key)


def _read_keys(settings: Settings) -> tuple[bytes | None, bytes | None]:
    """The key that signs, None for a random one, and one whose signatures are good, too. Raises `ConfigError`."""
    path, previous = settings.session_secret_file, settings.session_previous_secret_file
    if path:
        previous_key = read_secret(previous, "session_previous_secret_file") if previous else None
        return read_secret(path, "session_secret_file"), previous_key
    if previous:
        raise ConfigError("session_previous_secret_file", previous, "nothing without session_secret_file")
    return None, None


def read_secret(path: str, key: str) -> bytes:
    """A secret from a file, without the line break at its end. Raises `ConfigError`; warns if others can read it."""
    try:
        with Path(path).open("rb") as file:
            secret = file.read(SECRET_LIMIT_BYTES + 1).rstrip(b"\r\n")
            mode = Path(path).stat().st_mode
    except OSError as error:
        raise ConfigError(key, path, f"a file that can be read ({(error.strerror or 'error').lower()})") from None
    if not KEY_BYTES <= len(secret) <= SECRET_LIMIT_BYTES:
        raise ConfigError(key, path, f"a file of {KEY_BYTES} bytes or more, such as `openssl rand -base64 48` writes")
    if mode & 0o007:
        log.warning("%s=%s: everybody on this machine may read it; chmod o-rwx", key, path)
    return secret


class _Revoked(NamedTuple):
    """When a user was revoked, by both clocks."""

    at_s: float  # monotonic
    at_unix_s: float
    issued: float  # of the latest token that was seen then
    forgotten_s: float  # monotonic


class Revocations:
    """Users and tokens that may not come in again.

    Revoking a user refuses all tokens of the user that were made before; one made later is good again. Both are
    forgotten after a time, when the tokens they were about have ended by themselves.

    How long is measured in monotonic time. When a token was made is said in Unix time, so that of the revocation is
    counted back from now: a wall clock that was wrong then, and was set right since, neither keeps a user out nor lets
    one in.

    Args:
        limit: how many there can be at a time.
        clock: monotonic seconds.
        wall_clock: Unix seconds.
    """

    def __init__(
        self,
        limit: int = REVOCATIONS_LIMIT,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._wall_clock = wall_clock
        self.total = 0
        """How many there ever were."""
        self._users: dict[str, _Revoked] = {}
        self._tokens: dict[str, float] = {}  # token id: forgotten at, monotonic

    def add_user(self, user: str, seconds: float, issued: float = 0.0) -> None:
        """Refuse the user's present tokens for so long; a revocation that lasts longer is not shortened.

        Args:
            user: whose.
            seconds: how long.
            issued: when the latest of the tokens that were seen says it was made: an issuer's clock may be ahead.

        Raises OverflowError if there are too many.
        """
        self._make_room(user in self._users)
        now_s = self._clock()
        until_s = now_s + seconds
        before = self._users.get(user)
        if before is not None:
            issued, until_s = max(issued, before.issued), max(until_s, before.forgotten_s)
        self._users[user] = _Revoked(now_s, self._wall_clock(), issued, until_s)
        self.total += 1

    def add_token(self, token_id: str, seconds: float) -> None:
        """Refuse one token for so long, or as long as it is refused already. Raises OverflowError as `add_user`."""
        self._make_room(token_id in self._tokens)
        self._tokens[token_id] = max(self._clock() + seconds, self._tokens.get(token_id, -math.inf))
        self.total += 1

    def holds(self, user: str, token_id: str, issued: float) -> bool:
        """Whether a token of this user, with this id, made at that time, was revoked."""
        if not self._users and not self._tokens:
            return False
        now_s = self._clock()
        revoked = self._users.get(user)
        if revoked is not None and now_s < revoked.forgotten_s and self._was_made_before(issued, revoked, now_s):
            return True
        return bool(token_id) and now_s < self._tokens.get(token_id, -math.inf)

    def _was_made_before(self, issued: float, revoked: _Revoked, now_s: float) -> bool:
        unix_s = self._wall_clock()
        if issued <= max(unix_s - (now_s - revoked.at_s), revoked.issued):
            return True
        # made in the future: our clock is behind now, and may have been right then
        return issued > unix_s + SKEW_S and issued <= revoked.at_unix_s

    def __len__(self) -> int:
        return len(self._users) + len(self._tokens)

    def _make_room(self, is_known: bool) -> None:
        if is_known or len(self) < self._limit:
            return
        now_s = self._clock()
        self._users = {user: revoked for user, revoked in self._users.items() if revoked.forgotten_s > now_s}
        self._tokens = {token_id: until_s for token_id, until_s in self._tokens.items() if until_s > now_s}
        if len(self) >= self._limit:
            raise OverflowError(f"there are {self._limit} revocations already")


class Expiries(Generic[T]):
    """Which clients' logins end when, by whole monotonic seconds: one dict entry a client, removed when it goes."""

    def __init__(self) -> None:
        self._by_second: dict[int, dict[T, None]] = {}

    def add(self, client: T, at_s: float) -> int:
        """Have a client come up at a time; returns its place, to be given to `remove`."""
        second = int(at_s) + 1  # not before
        self._by_second.setdefault(second, {})[client] = None
        return second

    def remove(self, client: T, second: int) -> None:
        """Forget it; nothing happens if it has come up already."""
        clients = self._by_second.get(second)
        if clients is not None:
            clients.pop(client, None)
            if not clients:
                del self._by_second[second]

    def due(self, now_s: float) -> Iterable[T]:
        """Take out all whose time has come."""
        seconds = [second for second in self._by_second if second <= now_s]
        return [client for second in seconds for client in self._by_second.pop(second)]

    def __len__(self) -> int:
        return sum(map(len, self._by_second.values()))
