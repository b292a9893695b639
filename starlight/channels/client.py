"""A client, as hub and handlers see it, and what they see of the connection behind it.

Clients belong to the hub: handlers read them, and of their private fields only `hub`, `commands` and `auth.login` know
the meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from orjson import dumps

from starlight import close_codes
from starlight.auth.identity import Identity
from starlight.auth.limits import Faults, Meter
from starlight.ends import APPLICATION, Cause

if TYPE_CHECKING:
    from starlight._fanout import Subscriber
    from starlight.channels.channel import ChannelRecord
    from starlight.channels.hub import Hub
    from starlight.protocols.base import Codec, Part

__all__ = ["Client", "Connection"]


class Connection(Protocol):
    """What the hub and the handlers see of a connection.

    Attributes:
        subscriber: the core's record of it.
        peername: the other end's address; None if the socket has none.
        subprotocol: the one that was negotiated.
        codec: of what it says and is told.
        is_open: False once it is closing or closed.
    """

    @property
    def subscriber(self) -> Subscriber: ...
    @property
    def peername(self) -> tuple[Any, ...] | None: ...
    @property
    def subprotocol(self) -> str: ...
    @property
    def codec(self) -> Codec: ...
    @property
    def is_open(self) -> bool: ...

    @property
    def silent_ms(self) -> int:
        """How long a ping has had no answer, nor any other sign of life; 0 if there is none."""

    def close(
        self, code: int, reason: str | None = None, retry_ms: int | None = None, cause: Cause | None = None
    ) -> None:
        """End it in good order: what its outbox holds, a `bye`, the close frame.

        No reason: the code's own. cause: why, for operators; None: by the code.

        Raises TypeError or ValueError for what no close frame may carry: `close_codes.check_close`.
        """

    def pause_reading(self, seconds: float) -> None:
        """Read nothing for so long; what was read already is still handled."""

    def probe(self) -> None:
        """Ping it now, unless it owes a pong already."""

    def give_way(self) -> None:
        """End it, as it is silent."""


class Client:
    """A logged-in connection, as the hub and the handlers see it.

    Attributes:
        id: the name of this client, unique among all nodes.
        user: who it is. A user may have several clients.
        session: the token to log in again with, None without auth.
        expires: when the login ends, in Unix seconds; None if it does not.
        token_id: the name of the credential, by which it can be revoked; "" if it has none.
        is_resumed: it logged in with a session token, so its login message carries no other credential.
        meter: of what it sends; None without rates.
        verdicts: what `Permissions` remembers about it.
        connection: the connection behind it; `connection.peername` is its address.
        subscriber: the core's record of it.
        codec: of what it says and is told.
        is_connected: True from the welcome until it is gone.
        last_error: the code of the last error reply it got; None if it got none.
    """

    __slots__ = (
        "_busy",
        "_channels",
        "_data",
        "_direct_head",
        "_due_second",
        "_ends_s",
        "_faults",
        "_groups",
        "_has_own_groups",
        "_heads",
        "_hub",
        "_issued",
        "codec",
        "connection",
        "expires",
        "id",
        "is_connected",
        "is_resumed",
        "last_error",
        "meter",
        "session",
        "subscriber",
        "token_id",
        "user",
        "verdicts",
    )

    def __init__(self, hub: Hub, connection: Connection, identity: Identity, id: str) -> None:
        self._hub = hub
        self.id = id
        self.user = identity.user
        self.session = identity.session
        self.expires = identity.expires
        self.token_id = identity.token_id
        self.is_resumed = identity.is_resumed
        self.verdicts: dict[tuple[int, str, str], bool] = {}
        self._groups = frozenset(identity.groups)
        self._has_own_groups = False  # the application set them, so a new token doesn't
        self._issued = identity.issued
        self._ends_s = 0.0  # when the login ends, by the hub's monotonic clock; 0.0 if it does not
        self._due_second = 0  # its place in the hub's expiries
        self.meter: Meter | None = None
        self.connection = connection
        self.subscriber: Subscriber = connection.subscriber
        self.codec: Codec = connection.codec
        self.is_connected = False
        self.last_error: int | None = None
        self._busy = False  # an async handler (or on_connect) of this client is under way
        self._channels: dict[str, ChannelRecord] = {}
        self._data: dict[str, Any] | None = None
        self._direct_head: Part = b""  # b"" until first used, as are the heads of publications and broadcasts
        self._heads: dict[str, Part] = {}
        self._faults: Faults | None = None

    @property
    def data(self) -> dict[str, Any]:
        """A dict for whatever the application wants to remember about this client; empty at first."""
        if self._data is None:
            self._data = {}
        return self._data

    @property
    def groups(self) -> frozenset[str]:
        """The groups it is in: those of its token until somebody, an `on_login` handler say, sets others."""
        return self._groups

    @groups.setter
    def groups(self, names: Iterable[str]) -> None:
        self._groups = frozenset([names] if isinstance(names, str) else names)
        self._has_own_groups = True
        self.verdicts.clear()

    @property
    def channels(self) -> list[str]:
        """Names of the channels it has joined, in the order of joining."""
        return list(self._channels)

    def send(self, data: object) -> None:
        """Push `server {data}` to this client alone; nothing happens if it is gone. TypeError if it isn't JSON."""
        self._hub.push_to_client(self, dumps(data))

    def close(self, code: int = close_codes.NORMAL, reason: str | None = None) -> None:
        """End this client in good order: what it is still to get, a `bye`, the close frame. Nothing if it is gone.

        Its messages that wait are dropped; a handler of it that is under way goes on, and its reply is dropped.

        Args:
            code: 4000-4499 let clients come back, 4500-4999 and 1000 keep them away (`docs/protocol.md`); also
                1001-1003, 1007-1009, 1011-1013 and 3000-3999.
            reason: printable ASCII of at most 123 characters; by default the constant one of the code, if it has one.

        Raises TypeError for a code that is no int or a reason that is no str, ValueError for any other that may not be
        sent, also if the client is gone; and `WrongThread`.
        """
        close_codes.check_close(code, reason)
        self.connection.close(code, reason, cause=APPLICATION)

    def __repr__(self) -> str:
        return f"<Client {self.id} of {self.user!r}>"
