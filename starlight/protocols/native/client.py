"""The client's side of the protocol: what it sends, as bytes, and what it receives, as structs. Pure, no I/O.

The mirror of ``commands.py`` (what a server decodes) and of ``replies.py`` and ``pushes.py`` (what it sends). Unknown
fields are ignored and an unknown type is None, so that an old client works with a newer server.
"""

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

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
    "JoinedItem",
    "Left",
    "Message",
    "Ok",
    "Pong",
    "Publication",
    "Received",
    "Refusal",
    "Server",
    "Unreadable",
    "Welcome",
    "decode",
    "encode",
    "encode_data",
    "read_head",
    "splice",
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
    limits: Any = None
    """An object of the client's limits, None where there is none; see `limit_of`."""
    previous: Any = None
    """An object that says how the connection that the login named ended, or None."""
    id: int | None = None

    def limit_of(self, name: str) -> int | None:
        """One of `limits`, such as ``message_bytes``; None if there is none, or if it makes no sense."""
        limit = self.limits.get(name) if isinstance(self.limits, dict) else None
        return limit if isinstance(limit, int) and limit > 0 else None


class Refusal(Struct):
    """Why one channel among several was not joined."""

    code: int
    name: str = "error"
    message: str = ""


class JoinedItem(Struct):
    """One channel of a join of several: joined if it has no error."""

    channel: str
    error: Refusal | None = None


class Ok(Struct, tag_field="type", tag="ok"):
    """A request succeeded; which fields are set depends on the request."""

    id: int | None = None
    data: Any = None
    clients: int = 0
    subscribers: int = 0
    scope: str = ""
    offset: int | None = None
    channel: str = ""
    channels: list[JoinedItem] = []
    """Of a join of several channels."""
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

    code: int = 0
    reason: str = ""
    retry_ms: Any = None
    """When to come back, in milliseconds, or None. A server may send anything: the backoff makes sense of it."""


Message = Direct | Broadcast | Server | Joined | Left | Gap | Expiring
"""What the server sends unasked, other than publications."""

Received = Welcome | Ok | Error | Pong | Publication | Bye | Message
"""Everything a server sends."""

_decode: Callable[[bytes], Received] = msgspec.json.Decoder(Received).decode


class _Head(Struct):
    """What can be read of a message that can't be held as a whole."""

    type: str = ""
    id: Any = None
    channel: Any = None


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode

_KNOWN_TYPES: Final = frozenset(
    struct.__struct_config__.tag
    for struct in (Welcome, Ok, Error, Pong, Publication, Bye, Direct, Broadcast, Server, Joined, Left, Gap, Expiring)
)
_FAILURES: Final = (msgspec.MsgspecError, RecursionError, ValueError, OverflowError, MemoryError)
"""What msgspec raises for messages that Python can't hold: numbers out of range, nesting, bytes that are not UTF-8."""
_SCALAR: Final = rb'(?:"(?:[^"\\]|\\.)*+"|[-+.0-9a-zA-Z]++)'
_ID_AT_THE_START: Final = re.compile(
    rb'\s*\{(?:\s*"\w+"\s*:\s*%b\s*,){0,8}?\s*"id"\s*:\s*([0-9]{1,16})\s*[,}]' % _SCALAR
)
_ID_AT_THE_END: Final = re.compile(rb',\s*"id"\s*:\s*([0-9]{1,16})\s*\}\s*$')
_END_BYTES: Final = 64


class Unreadable(NamedTuple):
    """As much as can be read of a message that can't be: not JSON, or JSON that Python can't hold.

    Attributes:
        type: of the message; "" if it can't be read.
        id: of the request that it answers, None if there is none.
        channel: of a publication; "" for any other message.
        why: for the log and for who waits for the reply.
    """

    type: str
    id: int | None
    channel: str
    why: str


def decode(message: bytes) -> Received | Unreadable | None:
    """One message of the server; None if it is of a type this client does not know. Raises nothing."""
    try:
        return _decode(message)
    except _FAILURES as error:
        head = read_head(message, str(error))
        return None if head.type not in _KNOWN_TYPES and head.type and head.id is None else head


def read_head(message: bytes, why: str) -> Unreadable:
    """What can be told of a message that `decode` refused. Linear in its length."""
    try:
        head = _decode_head(message)
    except _FAILURES:
        found = _ID_AT_THE_START.match(message) or _ID_AT_THE_END.search(message, max(0, len(message) - _END_BYTES))
        return Unreadable("", int(found[1]) if found else None, "", why)
    id = head.id if isinstance(head.id, int) else None
    channel = head.channel if head.type == "publication" and isinstance(head.channel, str) else ""
    return Unreadable(head.type, id, channel, why)


def encode_data(data: object) -> bytes:
    """A payload as JSON on one line. ``bytes`` are JSON already and are only checked.

    Raises:
        TypeError: `data` cannot be expressed in JSON (orjson's JSONEncodeError).
        ValueError: bytes that are not JSON. The server would refuse them, or end the connection.
    """
    if not isinstance(data, bytes):
        return dumps(data)
    try:
        data.decode()
        _decode_raw(data)
    except _FAILURES as error:
        raise ValueError(f"data: these bytes are not JSON ({error}); to send a text, give a str") from None
    return data.translate(_NEWLINES_TO_SPACES)


def encode(type: str, id: int | None = None, *, data: object = NO_DATA, **fields: object) -> bytes:
    """One message to the server.

    Args:
        type: such as ``publish``.
        id: asks for a reply that carries the same id; None asks for none.
        data: any value that orjson can encode. ``bytes`` are JSON already and are spliced as they are, newlines
            replaced by spaces (in valid JSON they can only stand between tokens).
        fields: of the message; those that are None are left out.

    Raises: as `encode_data`.
    """
    return splice(type, id, None if data is NO_DATA else encode_data(data), **fields)


def splice(type: str, id: int | None, payload: bytes | None, **fields: object) -> bytes:
    """As `encode`, with what `encode_data` made of the data; None for a message without."""
    message = {"type": type, "id": id, **fields}
    head = dumps({key: value for key, value in message.items() if value is not None})
    return head if payload is None else b'%b,"data":%b}' % (head[:-1], payload)
