"""Who a client is, and what it may do: the two seams between the hub and any scheme of authentication.

An `Authenticator` turns a login message into an `Identity` or refuses it by raising `CloseConnection`. `NoAuth`
believes what the login says; tokens are another authenticator behind the same seam, and not built yet. `Permissions`
is asked before a command is executed; without one (the default) everybody who is logged in may do everything.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from starlight import close_codes
from starlight.errors import CloseConnection, ConfigError
from starlight.protocol.commands import Login, is_user

if TYPE_CHECKING:
    from starlight.hub import Client

__all__ = ["Action", "Authenticator", "Identity", "NoAuth", "Permissions", "make_authenticator"]

Action = Literal["direct", "join", "publish", "broadcast", "presence"]
"""What a client may ask for that concerns others. Leaving is always allowed."""


class Identity(NamedTuple):
    """Who was logged in.

    Attributes:
        user: the user's name.
        session: a token to log in again with; None without auth.
        expires: when the identity ends, in Unix seconds; None if it does not.
    """

    user: str
    session: str | None = None
    expires: int | None = None


class Authenticator(Protocol):
    """Decides who a login is."""

    def authenticate(self, login: Login) -> Identity | Awaitable[Identity]:
        """The identity behind a login message, or an awaitable of it where something has to be asked first.

        Raises `CloseConnection`: 4500 for credentials that aren't right, 4501 for a login that lacks them.
        """


class Permissions(Protocol):
    """Decides what a client may do. Called for every command, so it must be quick and must not block."""

    def allows(self, client: Client, action: Action, name: str) -> bool:
        """Whether `client` may do `action` to `name`: a channel, a user for ``direct``, "" for ``broadcast``.

        False is answered with 103 `permission_denied`, the same whether the channel or user exists or not.
        """


class NoAuth:
    """Believes `login.user`. For development, and for nodes that only trusted programs can reach."""

    def authenticate(self, login: Login) -> Identity:
        """The user that the login names. Raises `CloseConnection` 4501 if it names none or an impossible one."""
        user = login.user
        if user is None or not is_user(user):
            raise CloseConnection(close_codes.BAD_REQUEST)
        return Identity(user)


def make_authenticator(auth: str) -> Authenticator:
    """The authenticator for the setting `auth`. Raises `ConfigError` for one that doesn't exist."""
    if auth == "none":
        return NoAuth()
    if auth == "jwt":
        raise ConfigError("auth", auth, "'none': authentication with tokens is not built yet")
    raise ConfigError("auth", auth, "'none'")
