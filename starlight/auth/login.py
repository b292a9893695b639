"""A login from its admission to its end: limits of users, the session token, expiry, renewal and revocation.

`LoginState` is what auth keeps of one client, which carries it; `Logins` decides about all clients of a hub. The hub
owns them; this never sends anything. No I/O; both clocks are passed in: tokens say in Unix time when they end, and that
is turned into monotonic time at once, so that a step of the wall clock doesn't end everybody's login. asyncio is used
to bound how long somebody else's check may take.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, Generic, Protocol, TypeVar

from orjson import JSONDecodeError, loads

from starlight import close_codes
from starlight.auth.dry_run import DryRun
from starlight.auth.identity import Authenticator, Identity, TokenAuth
from starlight.auth.limits import Faults, Limits, Meter
from starlight.auth.session_tokens import EXPIRING_S, Expiries, Revocations, SessionClaims, Sessions
from starlight.close_codes import ErrorCode
from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings
from starlight.errors import CloseConnection, KeysUnavailable, RequestError, TokenRefused
from starlight.protocols.native import commands
from starlight.stepping import Begun, begin, settled

__all__ = ["CHECK_TIMEOUT_S", "REVOKED_S", "LoggedIn", "LoginState", "Logins", "read_login"]

T = TypeVar("T")

CHECK_TIMEOUT_S: Final = 5.0
"""How long an application may check one login unless told otherwise: as long as the client had for sending it."""

REVOKED_S: Final = 86_400.0
"""How long a revocation is kept unless told otherwise: a day, the longest that a session may last. Tokens of the issuer
that are good for longer need longer."""

REVOKED: Final = "the user or its token was revoked"
"""What an operator is told of a login that is refused for it."""


class LoginState:
    """One login: who it is and by which credential, until when, and how much of its allowance is used.

    Args:
        identity: what the authenticator found out.

    Attributes:
        user: who it is.
        session: the token to log in again with, None without auth.
        expires: when the login ends, in Unix seconds; None if it does not.
        ends_s: when it ends, in monotonic seconds; 0.0 if it does not.
        due_second: its client's place in the expiries; 0 for none.
        token_id: the name of the credential, by which it can be revoked; "" if it has none.
        issued: when the credential was made, in Unix seconds; 0 if unknown.
        is_resumed: it came with a session token, so the login message carried no other credential.
        meter: of what the client sends; None without rates.
        faults: when the client made its latest faults; None before the first.
        verdicts: what `Permissions` remembers about it.
    """

    __slots__ = (
        "_groups",
        "_has_own_groups",
        "due_second",
        "ends_s",
        "expires",
        "faults",
        "is_resumed",
        "issued",
        "meter",
        "session",
        "token_id",
        "user",
        "verdicts",
    )

    def __init__(self, identity: Identity) -> None:
        self.user = identity.user
        self.session = identity.session
        self.expires = identity.expires
        self.ends_s = 0.0
        self.due_second = 0
        self.token_id = identity.token_id
        self.issued = identity.issued
        self.is_resumed = identity.is_resumed
        self.meter: Meter | None = None
        self.faults: Faults | None = None
        self.verdicts: dict[tuple[int, str, str], bool] = {}
        self._groups = frozenset(identity.groups)
        self._has_own_groups = False  # the application set them, so a new token doesn't

    @property
    def groups(self) -> frozenset[str]:
        """The groups the client is in: those of its token until the application sets others."""
        return self._groups

    @groups.setter
    def groups(self, names: Iterable[str]) -> None:
        self._has_own_groups = True
        self._change_groups(frozenset([names] if isinstance(names, str) else names))

    def renew(self, identity: Identity) -> None:
        """Take over what a new token of the same user says, its groups unless the application has set others."""
        self.token_id, self.issued, self.session = identity.token_id, identity.issued, None
        if not self._has_own_groups:
            self._change_groups(frozenset(identity.groups))

    def _change_groups(self, groups: frozenset[str]) -> None:
        if groups != self._groups:
            self._groups = groups
            self.verdicts.clear()


class Addressed(Protocol):
    """What is asked of a client's connection."""

    @property
    def peername(self) -> tuple[Any, ...] | None: ...


class LoggedIn(Protocol):
    """What is asked of a client."""

    @property
    def login(self) -> LoginState: ...
    @property
    def connection(self) -> Addressed: ...
    @property
    def is_connected(self) -> bool: ...


C = TypeVar("C", bound=LoggedIn)


class Logins(Generic[C]):
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
        self._expiries: Expiries[C] = Expiries()

    async def identity(self, authenticator: Authenticator, login: commands.Login) -> Identity:
        """What an authenticator finds out, as `in_time`; but ours, which waits for keys, gives up by itself."""
        if isinstance(authenticator, TokenAuth):
            return await authenticator.authenticate(login)
        return await self.in_time(settled(authenticator.authenticate(login)))

    async def in_time(self, checking: Coroutine[Any, Any, T], what: str = "its check") -> T:
        """What a check of a login comes to. Cancels it and raises `CloseConnection` 1013 if it takes too long.

        Not 4015 (login timeout): it is the check that is late, not the client. It is cancelled too when the caller is,
        and not waited for, as it may ignore that. A check that doesn't wait for anything needs no task.

        Args:
            checking: the check.
            what: what took too long, for operators.
        """
        begun = begin(checking)
        if not isinstance(begun, Begun):
            return begun
        task = asyncio.ensure_future(begun)
        try:
            await asyncio.wait((task,), timeout=self._check_timeout_s)
        finally:
            if not task.done():
                task.cancel()
                self._late.add(task)
                task.add_done_callback(self._forget_late)
        if task not in self._late:
            result: T = task.result()
            return result
        detail = f"{what} took more than {self._check_timeout_s:g} s: login_timeout"
        raise CloseConnection(close_codes.OVERLOADED, detail=detail)

    def _forget_late(self, task: asyncio.Future[Any]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # nobody wants to know

    def reconfigure(self, settings: Settings) -> Commit:
        """Other limits for logins to come: see `config.reconfigure`."""
        limits = Limits.of(settings)

        def commit() -> None:
            self.limits = limits
            self._name_limit_bytes = settings.name_limit_bytes

        return commit

    def admit(self, client: C, present: int) -> None:
        """The last checks of a login, then its session.

        Args:
            client: who logs in.
            present: how many clients the user has already.

        Raises `CloseConnection` as `check` does, and for one client too many.
        """
        login = client.login
        self.check(login)
        self._limit(client, present, self.limits.connections_per_user)
        login.meter = self.limits.meter()
        if login.expires is not None:
            self._start(client, login.expires)

    def check(self, login: LoginState) -> None:
        """Raise `CloseConnection` for a user or token that was revoked, and for a name that is too long."""
        if self.revocations.holds(login.user, login.token_id, login.issued):
            raise CloseConnection(close_codes.DISCONNECTED, cause="login", detail=REVOKED)
        if len(login.user.encode()) > self._name_limit_bytes:
            detail = f"the user's name is longer than name_limit_bytes={self._name_limit_bytes}"
            raise CloseConnection(close_codes.BAD_REQUEST, cause="login", detail=detail)

    def _limit(self, client: C, present: int, limit: int) -> None:
        """Refuse one client too many of a user; in a dry run only say so, where the limit is passed."""
        if not limit or present < limit:
            return
        if self._dry_run.connections:
            if present == limit:
                peername = client.connection.peername
                self._dry_run.note("connections_per_user", user=client.login.user, peername=peername)
            return
        detail = f"the user has {present} connections: connections_per_user={limit}"
        raise CloseConnection(close_codes.CONNECTION_LIMIT, cause="login", detail=detail)

    def _start(self, client: C, expires: float) -> None:
        """Set when the login ends: with its token, or after the longest time of a session; and make its token."""
        now = self._wall_clock()
        login = client.login
        if self._sessions is not None and login.session is None:
            expires = min(expires, now + self._sessions.ttl_s)
            login.token_id = login.token_id or secrets.token_hex(8)
            groups = tuple(sorted(login.groups))
            login.session = self._sessions.issue(
                SessionClaims(login.user, groups, expires, login.issued, login.token_id)
            )
        login.expires = int(expires)
        self.forget(client)
        login.ends_s = self._clock() + expires - now
        login.due_second = self._expiries.add(client, login.ends_s - EXPIRING_S)

    def forget(self, client: C) -> None:
        """It is gone: don't expire it."""
        login = client.login
        if login.due_second:
            self._expiries.remove(client, login.due_second)
            login.due_second = 0

    def due(self) -> Iterator[tuple[C, float]]:
        """Clients whose login ends soon, each once, with the seconds left; and again, with 0 or less, when it has."""
        now_s = self._clock()
        for client in self._expiries.due(now_s):
            if not client.is_connected:
                continue
            login = client.login
            left_s = login.ends_s - now_s
            login.due_second = self._expiries.add(client, login.ends_s) if left_s > 0 else 0
            yield client, left_s

    @property
    def n_expiring(self) -> int:
        """How many clients have logins that end."""
        return len(self._expiries)

    async def identify(self, authenticator: Authenticator, token: str) -> Identity:
        """Who a new token says. Raises `RequestError`."""
        if not isinstance(authenticator, TokenAuth):
            raise RequestError(ErrorCode.NOT_AVAILABLE, "refresh: not available without tokens")
        try:
            return await authenticator.identify(token)
        except TokenRefused as refusal:
            if refusal.is_expired:
                raise RequestError(ErrorCode.TOKEN_EXPIRED, "token: expired") from None
            raise RequestError(ErrorCode.UNAUTHORIZED, "token: not accepted") from None
        except KeysUnavailable:
            raise RequestError(ErrorCode.NOT_AVAILABLE, "token: no key to check it with") from None

    def renew(self, client: C, identity: Identity) -> None:
        """Take a new token over: when it ends, and its groups unless the application has set others.

        Raises `RequestError` for a token of another user, `CloseConnection` for one that was revoked.
        """
        if identity.user != client.login.user:
            raise RequestError(ErrorCode.UNAUTHORIZED, "token: of another user")
        if self.revocations.holds(identity.user, identity.token_id, identity.issued):
            raise CloseConnection(close_codes.DISCONNECTED, cause="revoked", detail=REVOKED)
        client.login.renew(identity)
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
