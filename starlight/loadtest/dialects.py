"""The bytes of each dialect: login, join, leave and the text around the data.

The data itself is written by the engine (`_stamp.pxd`); servers pass it on verbatim. Field order in the JSON is part
of it: simple peers find `to` and `channel` by a byte scan, with `data` last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FORM_MESSAGE, FORM_LINES, FORM_NATS = 0, 1, 2
TEXT, BINARY = 1, 2
JOIN_ID = 1_000_000_000
LEAVE_ID = 2_000_000_000
ID_DIGITS = b"3000000000"
SIZE_DIGITS = b"0000000"

Template = tuple[bytes, bytes, int, int]
"""(before the data, after it, where the ten digits of an id go or -1, where the seven digits of a size go or -1)."""


@dataclass(frozen=True)
class StreamTarget:
    """Who a stream goes to: kind `everyone`, `channel` or `user`, and its name."""

    kind: str
    name: str


class Dialect(ABC):
    """How one kind of server is spoken to."""

    form: int = FORM_MESSAGE
    opcode: int = TEXT
    has_replies: bool = False
    """Whether joins and acknowledged publications are answered with our JSON replies."""
    welcome: bytes = b""
    """What the answer to the login contains; empty: a connection is ready once it is upgraded."""
    subprotocols: Sequence[str] = ()
    """Asked for in the upgrade; a server may take one of them, or none."""
    kinds: tuple[str, ...] = ("broadcast", "channels", "direct", "echo")
    """Kinds of traffic it can carry."""

    def login(self, user: str, channels: list[str]) -> bytes:
        """The first message; empty: none."""
        return b""

    def join(self, group: int, channel: str) -> bytes:
        """Ask for a channel; `group` is its number in the plan. Empty: the login did it."""
        return b""

    def leave(self, group: int, channel: str) -> bytes:
        """Leave a channel."""
        return b""

    @abstractmethod
    def publish(self, group: StreamTarget, acks: bool) -> Template:
        """What stands around the data of a message to a group."""


class Native(Dialect):
    """starlight.v1, and peers that know some of its commands; `lines` only changes what a frame may hold."""

    has_replies = True
    welcome = b'"welcome"'

    def __init__(self, form: int = FORM_MESSAGE) -> None:
        self.form = form
        self.subprotocols = ["starlight.v1.lines" if form == FORM_LINES else "starlight.v1"]

    def login(self, user: str, channels: list[str]) -> bytes:
        return b'{"type":"login","user":"%s"}' % user.encode()

    def join(self, group: int, channel: str) -> bytes:
        return b'{"type":"join","id":%d,"channel":"%s"}' % (JOIN_ID + group, channel.encode())

    def leave(self, group: int, channel: str) -> bytes:
        return b'{"type":"leave","id":%d,"channel":"%s"}' % (LEAVE_ID + group, channel.encode())

    def publish(self, group: StreamTarget, acks: bool) -> Template:
        kind, field = {
            "everyone": (b"broadcast", b""),
            "channel": (b"publish", b'"channel":"%s",' % group.name.encode()),
            "user": (b"direct", b'"to":"%s",' % group.name.encode()),
        }[group.kind]
        start = b'{"type":"%s",' % kind
        identity = b'"id":' if acks else b""
        before = start + (identity + ID_DIGITS + b"," if acks else b"") + field + b'"data":'
        return before, b"}", len(start) + len(identity) if acks else -1, -1


class Raw(Dialect):
    """A plain server: every text is sent back, or to everyone. Without names, only `broadcast` and `echo` make
    sense."""

    kinds = ("broadcast", "echo")

    def __init__(self, form: int = FORM_MESSAGE) -> None:
        self.form = form

    def publish(self, group: StreamTarget, acks: bool) -> Template:
        return b"", b"", -1, -1


class SocketIO(Raw):
    """Engine.IO 4 and Socket.IO on a websocket: the event `message` with the data as its argument, on the default
    namespace."""

    welcome = b'40{"sid"'

    def login(self, user: str, channels: list[str]) -> bytes:
        return b"40"

    def publish(self, group: StreamTarget, acks: bool) -> Template:
        return b'42["message",', b"]", -1, -1


class Nats(Dialect):
    """nats-server's websocket: groups are subjects (`everyone`, channel and user names); a PONG confirms the
    subscriptions."""

    form = FORM_NATS
    opcode = BINARY
    welcome = b"PONG"

    def login(self, user: str, channels: list[str]) -> bytes:
        subjects = ["everyone", user, *channels]
        subscriptions = "".join(f"SUB {subject} {number}\r\n" for number, subject in enumerate(subjects, 1))
        return b'CONNECT {"verbose":false,"pedantic":false}\r\n' + subscriptions.encode() + b"PING\r\n"

    def publish(self, group: StreamTarget, acks: bool) -> Template:
        before = b"PUB %s " % ("everyone" if group.kind == "everyone" else group.name).encode()
        return before + SIZE_DIGITS + b"\r\n", b"\r\n", -1, len(before)


DIALECTS: Final[dict[str, Dialect]] = {
    "native": Native(),
    "lines": Native(FORM_LINES),
    "raw": Raw(),
    "raw-lines": Raw(FORM_LINES),
    "nats": Nats(),
    "socketio": SocketIO(),
}
"""By name; `target.Target` says what each is for."""
