"""The client's side of the protocol: what it sends, as bytes, and what it receives, as structs. Pure, no I/O.

The mirror of ``commands.py`` (what a server decodes) and of ``replies.py`` and ``pushes.py`` (what it sends). Unknown
fields are ignored and an unknown type is None, so that an old client works with a newer server.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct
from orjson import dumps

__all__ = [
    "NO_DATA",
    "Broadcast",
    "Bye",
    "Direct",
    "Error",
    "Expiring",
    "Gap",
    "Joined",
    "Left",
    "Message",
    "Ok",
    "Pong",
    "Publication",
    "Received",
    "Server",
    "Welcome",
    "decode",
    "encode",
]

NO_DATA: Final = msgspec.UNSET
"""For `encode`: the message has no ``data``; None is data, namely ``null``."""

_NEWLINES_TO_SPACES: Final = bytes.maketrans(b"\n\r", b"  ")


class Welcome(Struct, tag_field="type", tag="welcome"):
    """The login succeeded."""

    user: str
    client: str = ""
    node: str = ""
    session: str | None = None
    expires: int | None = None
    """Unix seconds; None if the session does not end."""
    ping: float = 25
    """How often the server pings, in seconds."""
    pong: float = 10
    """How long it waits for the pong, in seconds."""
    id: int | None = None


class Ok(Struct, tag_field="type", tag="ok"):
    """A request succeeded; which fields are set depends on the request."""

    id: int | None = None
    data: Any = None
    clients: int = 0
    subscribers: int = 0
    scope: str = ""
    offset: int | None = None
    channel: str = ""
    epoch: str | None = None
    users: list[str] = []
    session: str | None = None
    """Of a refresh, as is `expires`: what the welcome said of the new token's login."""
    expires: int | None = None


class Error(Struct, tag_field="type", tag="error"):
    """A request failed; without `id` it was one that did not ask for a reply."""

    code: int
    name: str = "error"
    message: str = ""
    id: int | None = None


class Pong(Struct, tag_field="type", tag="pong"):
    """The reply to ``ping``."""

    id: int | None = None


class Publication(Struct, tag_field="type", tag="publication", rename={"from_user": "from"}):
    """One message accepted in a channel."""

    channel: str
    data: Any
    from_user: str | None = None
    """Who published it; None: the server's application."""
    offset: int | None = None
    """Its place in the channel; None in a channel without history."""
    missed: int = 0
    """How many publications before this one the client dropped because its reader was slow."""


class Direct(Struct, tag_field="type", tag="direct", rename={"from_user": "from"}):
    """A message to this user alone."""

    data: Any
    from_user: str | None = None
    missed: int = 0
    """How many messages before this one the client dropped because its reader was slow."""


class Broadcast(Struct, tag_field="type", tag="broadcast", rename={"from_user": "from"}):
    """A message to every client."""

    data: Any
    from_user: str | None = None
    missed: int = 0
    """As in `Direct`."""


class Server(Struct, tag_field="type", tag="server"):
    """Pushed by the server's application."""

    data: Any
    missed: int = 0
    """As in `Direct`."""


class Joined(Struct, tag_field="type", tag="joined"):
    """A user joined a channel that announces its users."""

    channel: str
    user: str
    missed: int = 0
    """As in `Direct`."""


class Left(Struct, tag_field="type", tag="left"):
    """A user left a channel that announces its users."""

    channel: str
    user: str
    missed: int = 0
    """As in `Direct`."""


class Gap(Struct, tag_field="type", tag="gap", rename={"from_offset": "from", "to_offset": "to"}):
    """Publications of a channel were lost for this client."""

    channel: str
    from_offset: int | None = None
    to_offset: int | None = None
    reason: str = ""
    missed: int = 0
    """As in `Direct`."""


class Expiring(Struct, tag_field="type", tag="expiring"):
    """The session ends soon: send a new token."""

    seconds: float
    missed: int = 0
    """As in `Direct`."""


class Bye(Struct, tag_field="type", tag="bye"):
    """The last message before the server closes."""

    code: int
    reason: str = ""
    retry_ms: int | None = None
    """When to come back, in milliseconds."""


Message = Direct | Broadcast | Server | Joined | Left | Gap | Expiring
"""What the server sends unasked, other than publications."""

Received = Welcome | Ok | Error | Pong | Publication | Bye | Message
"""Everything a server sends."""

_decode: Callable[[bytes], Received] = msgspec.json.Decoder(Received).decode


class _OnlyType(Struct):
    type: str


_KNOWN_TYPES: Final = frozenset(
    struct.__struct_config__.tag
    for struct in (Welcome, Ok, Error, Pong, Publication, Bye, Direct, Broadcast, Server, Joined, Left, Gap, Expiring)
)


def decode(message: bytes) -> Received | None:
    """One message of the server; None if it is of a type this client does not know.

    Raises:
        msgspec.DecodeError: it is not JSON, or a known type with a wrong field.
    """
    try:
        return _decode(message)
    except msgspec.ValidationError:
        if msgspec.json.decode(message, type=_OnlyType).type in _KNOWN_TYPES:
            raise
        return None


def encode(type: str, id: int | None = None, *, data: object = NO_DATA, **fields: object) -> bytes:
    """One message to the server.

    Args:
        type: such as ``publish``.
        id: asks for a reply that carries the same id; None asks for none.
        data: any value that orjson can encode. ``bytes`` are JSON already and are spliced as they are, newlines
            replaced by spaces (in valid JSON they can only stand between tokens).
        fields: of the message; those that are None are left out.

    Raises:
        TypeError: `data` cannot be expressed in JSON (orjson's JSONEncodeError).
    """
    message = {"type": type, "id": id, **fields}
    head = dumps({key: value for key, value in message.items() if value is not None})
    if data is NO_DATA:
        return head
    payload = data.translate(_NEWLINES_TO_SPACES) if isinstance(data, bytes) else dumps(data)
    return b'%b,"data":%b}' % (head[:-1], payload)
