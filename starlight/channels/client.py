"""A client, as hub and handlers see it, and what they see of the connection behind it.

Clients belong to the hub: handlers read them, `hub` and `commands` write them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from orjson import dumps

from starlight import close_codes
from starlight.auth.login import LoginState
from starlight.brokers.base import Sender
from starlight.ends import APPLICATION, Cause

if TYPE_CHECKING:
    from starlight._fanout import Subscriber
    from starlight.channels.hub import Hub
    from starlight.channels.under_way import UnderWay
    from starlight.protocols.base import Codec

__all__ = ["Client", "ClientConnection"]


class ClientConnection(Protocol):
    """What the hub and the handlers see of a connection.

    Attributes:
        subscriber: the core's record of it.
        peername: the other end's address; None if the socket has none.
        subprotocol: the one that was negotiated.
        codec: of what it says and is told.
        is_open: False once it is closing or closed.
        client: the one that has logged in with it, while it is in the hub; None before and after.
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
    def client(self) -> Client | None: ...

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

    def on_login(self, client: Client) -> None:
        """It is logged in, and welcomed; from now on it has this client."""


class Client(Sender):
    """A logged-in connection, as the hub and the handlers see it.

    Attributes:
        id: the name of this client, unique among all nodes.
        user: who it is. A user may have several clients.
        login: what auth keeps of it.
        connection: the connection behind it; `connection.peername` is its address.
        subscriber: the core's record of it.
        codec: of what it says and is told.
        is_connected: True from the welcome until it is gone.
        under_way: what it has asked of a broker that has not answered yet; None most of the time.
        last_error: the code of the last error reply it got; None if it got none.
        is_busy: a handler of it (or `on_connect`) is under way, which `on_disconnect` comes behind.
    """

    __slots__ = (
        "_data",
        "_hub",
        "codec",
        "connection",
        "is_busy",
        "is_connected",
        "last_error",
        "login",
        "subscriber",
        "under_way",
    )

    user: str  # a client always has one

    def __init__(self, hub: Hub, connection: ClientConnection, login: LoginState, id: str) -> None:
        super().__init__(id, login.user)
        self._hub = hub
        self.login = login
        self.connection = connection
        self.subscriber: Subscriber = connection.subscriber
        self.codec: Codec = connection.codec
        self.is_connected = False
        self.under_way: UnderWay | None = None
        self.last_error: int | None = None
        self.is_busy = False
        self._data: dict[str, Any] | None = None

    @property
    def data(self) -> dict[str, Any]:
        """A dict for whatever the application wants to remember about this client; empty at first."""
        if self._data is None:
            self._data = {}
        return self._data

    @property
    def groups(self) -> frozenset[str]:
        """The groups it is in: those of its token until somebody, an `on_login` handler say, sets others."""
        return self.login.groups

    @groups.setter
    def groups(self, names: Iterable[str]) -> None:
        self.login.groups = names

    @property
    def session(self) -> str | None:
        """The token to log in again with; None without auth."""
        return self.login.session

    @property
    def expires(self) -> float | None:
        """When the login ends, in Unix seconds; None if it does not."""
        return self.login.expires

    @property
    def token_id(self) -> str:
        """The name of the credential, by which it can be revoked; "" if it has none."""
        return self.login.token_id

    @property
    def is_resumed(self) -> bool:
        """Whether it logged in with a session token, so that its login message carries no other credential."""
        return self.login.is_resumed

    @property
    def channels(self) -> list[str]:
        """Names of the channels it has joined, in the order of joining."""
        return self.subscriber.channels()

    @property
    def n_channels(self) -> int:
        """How many channels it has joined."""
        return max(0, self.subscriber.n_memberships - 1)  # one is that of everyone

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
