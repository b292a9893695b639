"""What a client logs in with: a user's name, a token, or the session of its last login.

Strategy: a session costs the server a tenth of a token and the application's token service nothing, so whoever comes
back tries it first. One that is refused, or has ended, is dropped, and the token has its turn. No I/O; the token
function is the application's.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlight import close_codes

__all__ = ["Credentials", "Token"]

Token = str | Callable[[], str | Awaitable[str]]
"""A token, or a function that returns a fresh one whenever one is needed, possibly a coroutine function."""

_REFUSALS: Final = frozenset((close_codes.SESSION_EXPIRED, close_codes.INVALID_TOKEN, close_codes.BAD_REQUEST))
"""Close codes of a login with which a token may do better than the session did: the session has ended, or another node,
which has another key, was asked. Not 4503: who was disconnected by the operator stays away."""


RENEWALS_LIMIT: Final = 3
"""Renewals in a row that failed, or put the end of the login off by nothing: the function gives the same token again
and again, and the server would say that it expires again and again."""

TOKEN_TIMEOUT_S: Final = 60.0
"""How long the token function may take. No socket is open meanwhile, so no server minds; but a request that hangs
must not keep a client away for ever."""


class Credentials:
    """The credentials of one client.

    Args:
        user: who to log in as, on a server without tokens.
        token: what to log in with, on any other.

    Attributes:
        expires: when the login ends, in Unix seconds; None if it does not, or before the first.
    """

    def __init__(self, user: str | None, token: Token | None) -> None:
        self.expires: int | None = None
        self._user = user
        self._token = token
        self._session: str | None = None
        self._vain_renewals = 0

    @property
    def can_renew(self) -> bool:
        """Whether asking for a fresh token can put the end of the login off."""
        return callable(self._token) and self._vain_renewals < RENEWALS_LIMIT

    async def login(self) -> dict[str, Any]:
        """The fields of the next login message. Raises what the token function raises."""
        if self._session is not None:
            return {"token": self._session}
        return {"user": self._user, "token": await self.fresh()}

    async def fresh(self) -> str | None:
        """A token, from the function if there is one.

        Raises what that raises, TimeoutError after `TOKEN_TIMEOUT_S`, and TypeError if it gives anything but a string.
        """
        token = self._token
        if token is None or isinstance(token, str):
            return token
        fresh = token()
        if inspect.isawaitable(fresh):
            try:
                async with asyncio.timeout(TOKEN_TIMEOUT_S) as limit:
                    fresh = await fresh
            except TimeoutError:
                if not limit.expired():
                    raise  # the function's own
                raise TimeoutError(f"the token function took more than {TOKEN_TIMEOUT_S:g} s") from None
        if not isinstance(fresh, str):
            raise TypeError(f"the token function gave {type(fresh).__name__} instead of a string")
        return fresh

    def welcome(self, session: str | None, expires: int | None) -> None:
        """A login was accepted, with what it says."""
        self._session = session
        self.expires = expires
        self._vain_renewals = 0

    def renew(self, token: str, session: str | None, expires: int | None) -> None:
        """A refresh with `token` was accepted, with what it says. A token that is a string is replaced by it."""
        is_vain = self.expires is not None and expires is not None and expires <= self.expires
        self._vain_renewals = self._vain_renewals + 1 if is_vain else 0
        self._session = session
        self.expires = expires
        if isinstance(self._token, str):
            self._token = token

    def renewal_failed(self) -> None:
        """A token was not got, or not accepted: after a few in a row the client stops asking until its next login."""
        self._vain_renewals += 1

    def drop_session(self, code: int) -> bool:
        """A login was refused, or the connection closed, with this code: True if another login may do, without the
        session that is dropped now."""
        if self._session is None or code not in _REFUSALS:
            return False
        self._session = None
        return True
