"""A login from its admission to its end: limits of users, the session token, expiry, renewal and revocation.

The hub owns the clients; this decides about them and never sends anything. No I/O; both clocks are passed in: tokens
say in Unix time when they end, and that is turned into monotonic time at once, so that a step of the wall clock doesn't
end everybody's login. asyncio is used to bound how long somebody else's check may take.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from orjson import JSONDecodeError, loads

from starlight import close_codes
from starlight.auth.dry_run import DryRun
from starlight.auth.identity import Authenticator, Identity, TokenAuth
from starlight.auth.session_tokens import EXPIRING_S, Expiries, Revocations, Session, Sessions
from starlight.close_codes import ErrorCode
from starlight.errors import CloseConnection, KeysUnavailable, RequestError, TokenRefused

if TYPE_CHECKING:
    from starlight.auth.limits import Limits
    from starlight.channels.client import Client

__all__ = ["CHECK_TIMEOUT_S", "REVOKED_S", "Logins", "read_login"]

T = TypeVar("T")

CHECK_TIMEOUT_S: Final = 5.0
"""How long an application may check one login unless told otherwise: as long as the client had for sending it."""

REVOKED_S: Final = 86_400.0
"""How long a revocation is kept unless told otherwise: a day, the longest that a session may last. Tokens of the issuer
that are good for longer need longer."""

REVOKED: Final = "the user or its token was revoked"
"""What an operator is told of a login that is refused for it."""


class Logins:
    """The logins of one hub.

    Args:
        sessions: makes session tokens; None for none.
        limits: of users and clients.
        name_limit_bytes: the longest user name.
        check_timeout_s: how long an application's check of one login may take, the client being a stranger meanwhile;
            and its `on_connect`.
        dry_run: limits that are not enforced; none by default.
        clock: monotonic seconds.
        wall_clock: Unix seconds.
    """

    def __init__(
        self,
        sessions: Sessions | None,
        limits: Limits,
        *,
        name_limit_bytes: int,
        check_timeout_s: float = CHECK_TIMEOUT_S,
        dry_run: DryRun | None = None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.revocations = Revocations(clock=clock, wall_clock=wall_clock)
        self._sessions = sessions
        self.limits = limits
        self._name_limit_bytes = name_limit_bytes
        self._check_timeout_s = check_timeout_s
        self._dry_run = dry_run or DryRun()
        self._late: set[asyncio.Future[Any]] = set()  # checks that were cancelled and haven't ended so far
        self._clock = clock
        self._wall_clock = wall_clock
        self._expiries = Expiries()

    async def identity(self, authenticator: Authenticator, identity: Awaitable[Identity]) -> Identity:
        """What an authenticator finds out; as `in_time`, but for ours, which waits for keys and gives up by itself."""
        return await (identity if isinstance(authenticator, TokenAuth) else self.in_time(identity))

    async def in_time(self, checking: Awaitable[T], what: str = "its check") -> T:
        """What a check of a login comes to. Cancels it and raises `CloseConnection` 1013 if it takes too long.

        Not 4015 (login timeout): it is the check that is late, not the client. It is cancelled too when the caller is,
        and not waited for, as it may ignore that.

        Args:
            checking: the check.
            what: what took too long, for operators.
        """
        task = asyncio.ensure_future(checking)
        try:
            await asyncio.wait((task,), timeout=self._check_timeout_s)
        finally:
            if not task.done():
                task.cancel()
                self._late.add(task)
                task.add_done_callback(self._forget_late)
        if task not in self._late:
            return task.result()
        detail = f"{what} took more than {self._check_timeout_s:g} s: login_timeout"
        raise CloseConnection(close_codes.OVERLOADED, detail=detail)

    def _forget_late(self, task: asyncio.Future[Any]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # nobody wants to know

    def change(self, limits: Limits, name_limit_bytes: int) -> None:
        """Other limits for logins to come."""
        self.limits = limits
        self._name_limit_bytes = name_limit_bytes

    def admit(self, client: Client, present: int) -> None:
        """The last checks of a login, then its session.

        Args:
            client: who logs in.
            present: how many clients the user has already.

        Raises `CloseConnection` as `check` does, and for one client too many.
        """
        self.check(client)
        self._limit(client, present, self.limits.connections_per_user)
        client.meter = self.limits.meter()
        if client.expires is not None:
            self._start(client, client.expires)

    def check(self, client: Client) -> None:
        """Raise `CloseConnection` for a user or token that was revoked, and for a name that is too long."""
        if self.revocations.holds(client.user, client.token_id, client._issued):
            raise CloseConnection(close_codes.DISCONNECTED, cause="login", detail=REVOKED)
        if len(client.user.encode()) > self._name_limit_bytes:
            detail = f"the user's name is longer than name_limit_bytes={self._name_limit_bytes}"
            raise CloseConnection(close_codes.BAD_REQUEST, cause="login", detail=detail)

    def _limit(self, client: Client, present: int, limit: int) -> None:
        """Refuse one client too many of a user; in a dry run only say so, where the limit is passed."""
        if not limit or present < limit:
            return
        if self._dry_run.connections:
            if present == limit:
                self._dry_run.note("connections_per_user", user=client.user, peername=client.connection.peername)
            return
        detail = f"the user has {present} connections: connections_per_user={limit}"
        raise CloseConnection(close_codes.CONNECTION_LIMIT, cause="login", detail=detail)

    def _start(self, client: Client, expires: float) -> None:
        """Set when the login ends: with its token, or after the longest time of a session; and make its token."""
        now = self._wall_clock()
        if self._sessions is not None and client.session is None:
            expires = min(expires, now + self._sessions.ttl_s)
            client.token_id = client.token_id or secrets.token_hex(8)
            session = Session(client.user, tuple(sorted(client.groups)), expires, client._issued, client.token_id)
            client.session = self._sessions.issue(session)
        client.expires = int(expires)
        self.forget(client)
        client._ends_s = self._clock() + expires - now
        client._due_second = self._expiries.add(client, client._ends_s - EXPIRING_S)

    def forget(self, client: Client) -> None:
        """It is gone: don't expire it."""
        if client._due_second:
            self._expiries.remove(client, client._due_second)
            client._due_second = 0

    def due(self) -> Iterator[tuple[Client, float]]:
        """Clients whose login ends soon, each once, with the seconds left; and again, with 0 or less, when it has."""
        now_s = self._clock()
        for client in self._expiries.due(now_s):
            if not client.is_connected:
                continue
            left_s = client._ends_s - now_s
            client._due_second = self._expiries.add(client, client._ends_s) if left_s > 0 else 0
            yield client, left_s

    def identify(self, authenticator: Authenticator, token: str) -> Identity | Awaitable[Identity]:
        """Who a new token says, or an awaitable of it. Raises `RequestError` (also out of the awaitable)."""
        if not isinstance(authenticator, TokenAuth):
            raise RequestError(ErrorCode.NOT_AVAILABLE, "refresh: not available without tokens")
        try:
            identity = authenticator.identify(token)
        except TokenRefused as refusal:
            raise _unauthorized(refusal) from None
        return identity if isinstance(identity, Identity) else _later(identity)

    def renew(self, client: Client, identity: Identity) -> None:
        """Take a new token over: when it ends, and its groups unless the application has set others.

        Raises `RequestError` for a token of another user, `CloseConnection` for one that was revoked.
        """
        if identity.user != client.user:
            raise RequestError(ErrorCode.UNAUTHORIZED, "token: of another user")
        if self.revocations.holds(identity.user, identity.token_id, identity.issued):
            raise CloseConnection(close_codes.DISCONNECTED, cause="revoked", detail=REVOKED)
        client.token_id, client._issued, client.session = identity.token_id, identity.issued, None
        if not client._has_own_groups and client._groups != frozenset(identity.groups):
            client._groups = frozenset(identity.groups)
            client.verdicts.clear()
        if identity.expires is not None:
            self._start(client, identity.expires)


def read_login(message: bytes) -> object:
    """The whole login message as Python objects, for `on_login`; it is a login already.

    Raises `CloseConnection` 4501 for one with a number out of range in a field that we don't know: good JSON to the
    decoder of commands, but not to orjson.
    """
    try:
        return loads(message)
    except JSONDecodeError:
        detail = "the login has a number that can't be read"
        raise CloseConnection(close_codes.BAD_REQUEST, detail=detail) from None


async def _later(identity: Awaitable[Identity]) -> Identity:
    try:
        return await identity
    except TokenRefused as refusal:
        raise _unauthorized(refusal) from None
    except KeysUnavailable:
        raise RequestError(ErrorCode.NOT_AVAILABLE, "token: no key to check it with") from None


def _unauthorized(refusal: TokenRefused) -> RequestError:
    if refusal.is_expired:
        return RequestError(ErrorCode.TOKEN_EXPIRED, "token: expired")
    return RequestError(ErrorCode.UNAUTHORIZED, "token: not accepted")
