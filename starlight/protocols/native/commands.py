"""What a client may send: the bytes of one message to one `Command`.

Strategy: one typed msgspec decoder over the tagged union of all built-in commands does the frequent case in C, and
every check that can be put into a type is there. Only when it refuses does `_recover` look again, slowly, to find out
why: another type (`Custom`), a wrong field, or no JSON object at all.

Law: **the payload is never parsed.** `data` stays a `msgspec.Raw`, a view into the received message, and is spliced as
it is into the JSON of other clients. So whatever `decode` lets through must be a valid JSON text. What msgspec 0.22
does when it skips a value into a Raw (each line has its test, against orjson and the standard library):

- refused, so error 107: NaN and infinities, leading zeros, half numbers, control characters in strings, unknown
  escapes, ``\\u`` escapes that are lone surrogates, comments, trailing commas, anything after the object, a byte order
  mark.
- lax, closed here: nesting. msgspec stops at the interpreter's recursion limit, which is about 980 levels on Python
  3.11 and many thousands later; a receiver may stop far earlier. `MAX_DEPTH` bounds it.
- lax, closed by the caller: bytes that are not UTF-8 pass inside a Raw. The connection has checked the whole message
  (RFC 6455 section 8.1), and `Lines` cuts only at ``\\n``, which is never part of a longer sequence.
- allowed by JSON, so passed on as it is: duplicate keys inside `data`, numbers that overflow a double (``1e400``),
  integers of any length (RFC 8259 sections 4 and 6 leave both to the receiver). Telling them apart would mean parsing
  every payload. Receivers differ: orjson refuses ``1e400``, json makes it inf, and both refuse an integer of 5,000
  digits, so whoever parses a payload must survive one that it cannot represent.

How the other bad input reads:

- Duplicate keys of the message itself: the last one counts, but each has to be of the field's type, and a `type` that
  turns into a built-in one is refused (107).
- Not JSON, an array, a scalar: `BadMessage`, which the hub turns into a 4501 before login and a 107 after it.
- A wrong or missing field: 107 with the field's name in the message, and the request's id if that could be read.
- A join of several channels: what is wrong with one name is that channel's own error, which the hub answers; only a
  list that isn't one, or items without a `channel` that is a string, refuse the whole message.
- A field that is not built yet (`since` of join; `key`, `ttl_ms`, `idempotency` of publish), whatever its value, null
  included, and the type `history`: 108. In an application's own types those fields are its own.
- `from`, `offset` and all other unknown fields: ignored; the server writes its own.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final, NoReturn, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from starlight.close_codes import ErrorCode
from starlight.errors import BadMessage, RequestError
from starlight.protocols.native._depth import is_deeper

__all__ = [
    "JOINS_LIMIT",
    "MAX_DEPTH",
    "AskPresence",
    "Command",
    "Custom",
    "History",
    "Join",
    "JoinItem",
    "Leave",
    "Login",
    "Ping",
    "Publish",
    "Refresh",
    "SendBroadcast",
    "SendDirect",
    "check_depth",
    "decode",
    "is_channel",
    "is_user",
    "read_id",
    "wrong_channel",
]

MAX_DEPTH: Final = 512
"""How deep a message may nest, the object of the message being level 1. What common receivers stand (PHP 512, Python's
json about 990, orjson 1,024) and far above what anyone writes by hand."""

ID_LIMIT: Final = 2**53
"""The largest magnitude of an integer id: what a double, and so JavaScript, holds exactly."""
ID_LIMIT_BYTES: Final = 64
"""The longest string id in bytes of UTF-8: room for a UUID in any spelling."""
NAME_LIMIT_BYTES: Final = 255
"""The longest user or channel name in bytes of UTF-8."""
JOINS_LIMIT: Final = 256
"""How many channels one join may name: their names fit into one message of the default size, and 1,000 channels, which
is what a client may have, are four messages."""
PRESENCE_DEFAULT: Final = 100
"""How many users a presence reply lists unless the request says otherwise."""
PRESENCE_LIMIT: Final = 1000
"""How many users a presence reply may list: about 64 KiB of ordinary names."""


if TYPE_CHECKING:
    RequestId: TypeAlias = int | str | None
    OptionalName: TypeAlias = str | None
    NotBuilt: TypeAlias = None
else:
    # None is what an absent id decodes to, but `"id":null` is a wrong id: so it is a default and not in the type.
    OptionalName = str
    RequestId = Annotated[int, Meta(ge=-ID_LIMIT, le=ID_LIMIT)] | Annotated[str, Meta(max_length=ID_LIMIT_BYTES)]

    class NotBuilt:
        """The type of a field that the protocol has and the server not yet: no value of it can be decoded.

        msgspec doesn't know the class and asks `_refuse`, so that these fields cost nothing until somebody sends one.
        """


def _refuse(type_: type, value: object) -> NoReturn:
    """msgspec's hook for types it does not know, here `NotBuilt` alone."""
    raise ValueError("not available")


class Login(Struct, tag_field="type", tag="login", frozen=True, gc=False):
    """The first message of a connection. Which of `token` and `user` is wanted is the authenticator's business.

    Attributes:
        token: a JWT or a session token.
        user: who it is, where the server runs without auth; a valid user name.
        id: of the request.
        previous: the client id of the connection before, None if there was none. Any string: one that is not known
            means nothing.
    """

    token: str | None = None
    user: str | None = None
    id: RequestId = None
    previous: str | None = None


class SendDirect(Struct, tag_field="type", tag="direct", frozen=True, gc=False):
    """A message to every client of one user.

    Attributes:
        to: the user's name.
        data: any JSON text, unparsed.
        id: of the request, None if it has none.
    """

    to: str
    data: Raw
    id: RequestId = None


_ABSENT: Final = Raw()


class JoinItem(Struct, frozen=True, gc=False):
    """One channel of a join of several.

    Attributes:
        channel: its name, which was not looked at: a wrong one fails alone.
        since: not built, so a channel that has it, with whatever value, fails with 108.
    """

    channel: str
    since: Raw = _ABSENT

    @property
    def has_since(self) -> bool:
        """Whether it came with a `since`."""
        return self.since is not _ABSENT


if TYPE_CHECKING:
    JoinItems: TypeAlias = tuple[JoinItem, ...] | None
else:
    JoinItems = Annotated[tuple[JoinItem, ...], Meta(min_length=1, max_length=JOINS_LIMIT)]  # as RequestId: no null


class Join(Struct, tag_field="type", tag="join", frozen=True, gc=False):
    """Subscribe to a channel, or to several. (`since` is not built.)

    Attributes:
        channel: its name; None if the message names several.
        id: of the request, None if it has none.
        channels: at most `JOINS_LIMIT` of them, in order; None if the message names one.
    """

    channel: OptionalName = None
    id: RequestId = None
    since: NotBuilt = None
    channels: JoinItems = None


class Leave(Struct, tag_field="type", tag="leave", frozen=True, gc=False):
    """End a subscription."""

    channel: str
    id: RequestId = None


class Publish(Struct, tag_field="type", tag="publish", frozen=True, gc=False):
    """A message to every subscriber of a channel. (`key`, `ttl_ms` and `idempotency` are not built.)

    Attributes:
        channel: its name.
        data: any JSON text, unparsed.
        id: of the request, None if it has none.
    """

    channel: str
    data: Raw
    id: RequestId = None
    key: NotBuilt = None
    ttl_ms: NotBuilt = None
    idempotency: NotBuilt = None


class SendBroadcast(Struct, tag_field="type", tag="broadcast", frozen=True, gc=False):
    """A message to every logged-in client.

    Attributes:
        data: any JSON text, unparsed.
        id: of the request, None if it has none.
    """

    data: Raw
    id: RequestId = None


class AskPresence(Struct, tag_field="type", tag="presence", frozen=True, gc=False):
    """Who is in a channel. Always has an id: without one there would be no reply.

    Attributes:
        channel: its name.
        id: of the request.
        limit: how many users to list at most, 0 to 1,000; 0 asks for the count alone.
    """

    channel: str
    id: RequestId = None
    limit: Annotated[int, Meta(ge=0, le=PRESENCE_LIMIT)] = PRESENCE_DEFAULT


class History(Struct, tag_field="type", tag="history", frozen=True, gc=False):
    """Stored publications. Not built: `decode` raises 108 and never returns one."""

    id: RequestId = None


class Refresh(Struct, tag_field="type", tag="refresh", frozen=True, gc=False):
    """A new token on the open connection.

    Attributes:
        token: a JWT or a session token of the same user.
        id: of the request, None if it has none.
    """

    token: str
    id: RequestId = None


class Ping(Struct, tag_field="type", tag="ping", frozen=True, gc=False):
    """Ask for a pong in JSON, for clients that cannot send WebSocket pings."""

    id: RequestId = None


class Custom(Struct, frozen=True, gc=False):
    """A message of any type that is not built in: for the application's handler of that type.

    Attributes:
        type: its type; may be any string, so do not echo it.
        message: the whole message, a valid JSON object.
        data: its `data`, unparsed; None if there is none.
        id: of the request, None if it has none.
    """

    type: str
    message: bytes
    data: Raw | None = None
    id: RequestId = None


Command = Login | SendDirect | Join | Leave | Publish | SendBroadcast | AskPresence | History | Refresh | Ping | Custom
"""What `decode` returns."""

_BuiltIn = Login | SendDirect | Join | Leave | Publish | SendBroadcast | AskPresence | History | Refresh | Ping


class _Envelope(Struct, gc=False):
    """What can be read of any object: enough for a Custom."""

    type: str
    data: Raw = _ABSENT
    id: RequestId = None


class _IdOnly(Struct, gc=False):
    """What can be read of an object whose type is wrong."""

    id: RequestId = None


_decode: Callable[[bytes], _BuiltIn] = msgspec.json.Decoder(_BuiltIn, dec_hook=_refuse).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_id = msgspec.json.Decoder(_IdOnly).decode

_BUILT_IN_TYPES: Final = frozenset(
    ("login", "direct", "join", "leave", "publish", "broadcast", "presence", "history", "refresh", "ping")
)
_NOT_BUILT_FIELDS: Final = frozenset(("since", "key", "ttl_ms", "idempotency"))
_USER_RULE: Final = f"a user name: 1-{NAME_LIMIT_BYTES} bytes of UTF-8 without control characters"
_EXPECTED: Final = {
    "id": f"an integer within +-2^53 or a string of at most {ID_LIMIT_BYTES} bytes",
    "type": "one string",
    "token": "a string",
    "user": _USER_RULE,
    "to": _USER_RULE,
    "channel": f"a channel name: 1-{NAME_LIMIT_BYTES} bytes of A-Z a-z 0-9 _ - . : / @ #",
    "channels": f"1 to {JOINS_LIMIT} objects, each with a channel that is a string",
    "previous": "a string",
    "data": "any JSON value",
    "limit": f"an integer from 0 to {PRESENCE_LIMIT}",
}
_FIELD_AT: Final = re.compile(r"at `\$\.([a-z_]+)|missing required field `([a-z_]+)`")
_CHANNEL: Final = re.compile(r"[A-Za-z0-9_\-.:/@#]{1,255}")
_USER: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,255}")  # Unicode's category Cc
_KNOWN_NAMES: Final = 4096  # of each kind, about 1 MiB if all are as long as allowed
_known_channels: Final[set[str]] = set()
_known_users: Final[set[str]] = set()
_FAILURES: Final = (msgspec.MsgspecError, RecursionError, UnicodeError)


def decode(message: bytes) -> Command:
    """The command in one message, which must be valid UTF-8.

    Raises:
        BadMessage: it is not JSON, or not an object (error 107; a close with 4501 before login).
        RequestError: 107 with the name of the wrong field, or 108 for what is not built yet. Its `id` is the request's,
            or None if it had none or a wrong one.
    """
    try:
        command = _decode(message)
    except _FAILURES as failure:
        return _recover(message, failure)
    request_id = command.id
    if isinstance(request_id, str) and not _is_id(request_id):
        raise _wrong("id", None)
    if len(message) > 2 * MAX_DEPTH:  # each level takes two bytes: no shorter message can nest too deep
        check_depth(message, request_id)
    # By type and not by isinstance, which takes 0.06 µs more for each Struct class that does not match (ABCMeta).
    if type(command) is Publish:
        if command.channel not in _known_channels and not is_channel(command.channel):
            raise _wrong("channel", request_id)
    elif type(command) is SendDirect:
        if command.to not in _known_users and not is_user(command.to):
            raise _wrong("to", request_id)
    elif type(command) is not SendBroadcast:
        _check_rare(command)
    return command


def read_id(message: bytes) -> int | str | None:
    """The id of a message that is refused, if it has a valid one: a pass over the message and nothing else."""
    try:
        request_id = _decode_id(message).id
    except _FAILURES:
        return None
    return request_id if not isinstance(request_id, str) or _is_id(request_id) else None


def is_channel(name: str) -> bool:
    """Whether this is a valid channel name: 1-255 bytes of ``A-Z a-z 0-9 _ - . : / @ #``."""
    if name in _known_channels:
        return True
    return _CHANNEL.fullmatch(name) is not None and _remember(_known_channels, name)


def is_user(name: str) -> bool:
    """Whether this is a valid user name: 1-255 bytes of UTF-8 without control characters (C0, DEL, C1)."""
    if name in _known_users:
        return True
    return _USER.fullmatch(name) is not None and _fits(name, NAME_LIMIT_BYTES) and _remember(_known_users, name)


def _remember(known: set[str], name: str) -> bool:
    """Keep a valid name, so that the next message with it needs no match. Wrong ones are not kept: they may be long."""
    if len(known) >= _KNOWN_NAMES:
        known.clear()
    known.add(name)
    return True


def _is_id(value: str) -> bool:
    return value.isascii() or _fits(value, ID_LIMIT_BYTES)  # the decoder has bounded the number of characters


def _fits(text: str, limit_bytes: int) -> bool:
    """Whether it is at most so long in UTF-8; a lone surrogate, which has no UTF-8, never fits."""
    try:
        return len(text.encode()) <= limit_bytes
    except UnicodeEncodeError:
        return False


def _check_rare(command: _BuiltIn) -> None:
    """The rules of the commands that nobody sends a million times a second."""
    if type(command) is Join:
        _check_join(command)
    elif type(command) is Leave or type(command) is AskPresence:
        if not is_channel(command.channel):
            raise _wrong("channel", command.id)
        if type(command) is AskPresence and command.id is None:
            raise RequestError(ErrorCode.BAD_REQUEST, "id: missing, presence needs one")
    elif type(command) is Login:
        if command.user is not None and not is_user(command.user):
            raise _wrong("user", command.id)
    elif type(command) is History:
        raise RequestError(ErrorCode.NOT_AVAILABLE, "history: not available", command.id)


def _check_join(command: Join) -> None:
    """One channel with a valid name, or a list, of which every name is judged for itself later on."""
    if command.channels is None:
        if command.channel is None:
            raise RequestError(ErrorCode.BAD_REQUEST, "channel: missing", command.id)
        if not is_channel(command.channel):
            raise _wrong("channel", command.id)
    elif command.channel is not None:
        raise RequestError(ErrorCode.BAD_REQUEST, "channels: not together with channel", command.id)


def wrong_channel(name: str) -> RequestError | None:
    """What is wrong with the name of one channel among several: error 107, or None for a valid name."""
    return None if is_channel(name) else _wrong("channel", None)


def _recover(message: bytes, failure: Exception) -> Custom:
    """Why the decoder refused: a type of the application (returned), or an error (raised)."""
    try:
        envelope = _decode_envelope(message)
    except (msgspec.ValidationError, RecursionError) as wrong:
        raise _explain(message, wrong) from None
    except _FAILURES:
        raise BadMessage(ErrorCode.BAD_REQUEST, "not JSON") from None
    if envelope.type in _BUILT_IN_TYPES:
        raise _explain(message, failure) from None
    if isinstance(envelope.id, str) and not _is_id(envelope.id):
        raise _wrong("id", None)
    if len(message) > 2 * MAX_DEPTH:
        check_depth(message, envelope.id)
    data = None if envelope.data is _ABSENT else envelope.data
    return Custom(envelope.type, message, data, envelope.id)


def _explain(message: bytes, failure: Exception) -> RequestError:
    """The error for a message that a decoder refused with this failure."""
    if isinstance(failure, RecursionError):
        return _too_deep(read_id(message))
    request_id = read_id(message)
    found = _FIELD_AT.search(str(failure))
    if not found:
        return BadMessage(ErrorCode.BAD_REQUEST, "not a JSON object")
    field = found[1] or found[2]
    if field in _NOT_BUILT_FIELDS:
        return RequestError(ErrorCode.NOT_AVAILABLE, f"{field}: not available", request_id)
    if found[2]:
        return RequestError(ErrorCode.BAD_REQUEST, f"{field}: missing", request_id)
    return _wrong(field, request_id)


def _wrong(field: str, request_id: int | str | None) -> RequestError:
    expected = _EXPECTED.get(field, "another value")
    return RequestError(ErrorCode.BAD_REQUEST, f"{field}: expected {expected}", request_id)


def check_depth(message: bytes, request_id: int | str | None) -> None:
    """Refuse a valid JSON text that nests deeper than MAX_DEPTH."""
    if is_deeper(message, MAX_DEPTH):
        raise _too_deep(request_id)


def _too_deep(request_id: int | str | None) -> RequestError:
    return RequestError(ErrorCode.BAD_REQUEST, f"nested deeper than {MAX_DEPTH} levels", request_id)
