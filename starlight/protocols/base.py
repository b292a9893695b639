"""What a protocol has to provide: a codec, one object between its bytes and what the server means by them.

Strategy: the server speaks in commands, in close codes and error codes of its own (`close_codes`), in names and
payloads. A codec turns a message into a command, and replies, pushes and ends into its own bytes. It does no I/O, has
no clock and keeps nothing of a client.

Law: only a codec writes a protocol's bytes. A payload (`data`) is spliced between its head and its tail, never parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from starlight._fanout import FRAMES, LINES

if TYPE_CHECKING:
    from starlight.errors import RequestError
    from starlight.protocols.native.commands import Command

__all__ = ["FRAMES", "LINES", "ClientLimits", "Codec", "Codecs", "Encoding", "Ending", "Part"]

Id = int | str | None
Part = bytes | tuple[bytes, ...]
"""A head or tail: bytes for all codecs, or one for each."""


class ClientLimits(NamedTuple):
    """What a client is told of its limits in `welcome`; None where there is none.

    Attributes:
        message_bytes: the largest message; a larger one ends the connection with 1009.
        channels: how many channels it may have joined (106 beyond).
        message_rate: messages a second (111 beyond).
        byte_rate: bytes of messages a second, likewise.
    """

    message_bytes: int | None = None
    channels: int | None = None
    message_rate: int | None = None
    byte_rate: int | None = None


class Ending(NamedTuple):
    """How a connection ends on the wire.

    Attributes:
        code: of the close frame.
        reason: in the close frame; ASCII of at most 123 bytes.
        bye: the message before it; b"" for none.
    """

    code: int
    reason: str
    bye: bytes


class Codec(Protocol):
    """One protocol: an object, or a module, that has all of this.

    Attributes:
        is_text: whether its messages go in text frames; else in binary ones, and only in those are they taken.
        framings: by subprotocol, FRAMES (one message a frame) or LINES (several, with line breaks between; text alone).
        tail: what follows the data of every push that has some.

    Replies with an `id` answer a request that had one; it comes back as it was. They raise TypeError for what the
    protocol can't express.
    """

    @property
    def is_text(self) -> bool: ...
    @property
    def framings(self) -> Mapping[str, int]: ...
    @property
    def tail(self) -> bytes: ...

    def decode(self, message: bytes) -> Command:
        """The command in a message, which is valid UTF-8 if it is text.

        Raises `RequestError`, with the request's id if that could be read.
        """

    def read_id(self, message: bytes) -> Id:
        """The id of a message that is refused unread, if it has a valid one."""

    # replies
    def welcome(
        self,
        id: Id,
        *,
        user: str,
        client: str,
        node: str,
        ping_s: float,
        pong_s: float,
        session: str | None = None,
        expires: int | None = None,
        limits: ClientLimits | None = None,
        previous: Mapping[str, object] | None = None,
    ) -> bytes: ...
    def ok(self, id: int | str, **fields: Any) -> bytes: ...
    def ok_id(self, id: int | str) -> bytes: ...
    def ok_publish(self, id: int | str, subscribers: int) -> bytes: ...
    def ok_count(self, id: int | str, clients: int) -> bytes: ...
    def ok_join(self, id: int | str, channel: str) -> bytes: ...
    def ok_joins(self, id: int | str, outcomes: Iterable[tuple[str, RequestError | None]]) -> bytes: ...
    def ok_presence(self, id: int | str, users: Sequence[str], clients: int) -> bytes: ...
    def ok_data(self, id: int | str, data: object) -> bytes: ...
    def error(self, id: Id, code: int, message: str) -> bytes: ...
    def pong(self, id: Id = None) -> bytes: ...

    # pushes: heads, which the data and `tail` follow, and whole messages
    def publication_head(self, channel: str, from_user: str | None) -> bytes: ...
    def broadcast_head(self, from_user: str | None) -> bytes: ...
    def direct_head(self, from_user: str | None) -> bytes: ...
    def server_head(self) -> bytes: ...
    def joined(self, channel: str, user: str) -> bytes: ...
    def left(self, channel: str, user: str) -> bytes: ...
    def expiring(self, seconds: int) -> bytes: ...

    def end(self, code: int, reason: str | None, retry_ms: int | None) -> Ending:
        """How an end is told.

        Args:
            code: why, one of `close_codes` or of an application.
            reason: printable ASCII of at most 123 characters; None for the code's own.
            retry_ms: when the client may come back, in milliseconds; None if nothing is said about that.
        """


class Encoding(NamedTuple):
    """A codec in one of its framings.

    Attributes:
        number: of the core, which writes each publication once in every encoding that has receivers.
        subprotocol: by which it is asked for.
        framing: FRAMES or LINES.
    """

    number: int
    subprotocol: str
    codec: Codec
    framing: int


class Codecs:
    """What a node speaks. Codecs and encodings are numbered here, once, in the order in which they are given.

    Raises ValueError for two codecs that share a subprotocol.
    """

    def __init__(self, *codecs: Codec) -> None:
        self.all = codecs
        offered = [(name, codec, framing) for codec in codecs for name, framing in codec.framings.items()]
        self.encodings = tuple(Encoding(number, *each) for number, each in enumerate(offered))
        self._by_subprotocol = {encoding.subprotocol: encoding for encoding in self.encodings}
        if len(self._by_subprotocol) < len(self.encodings):
            raise ValueError("two codecs have the same subprotocol")

    def for_core(self) -> list[tuple[int, int, bool]]:
        """The encodings as `Core` takes them."""
        return [(self.all.index(codec), framing, codec.is_text) for _, _, codec, framing in self.encodings]

    def select(self, offers: Iterable[str]) -> Encoding | None:
        """The encoding for the offers of ``Sec-WebSocket-Protocol`` in the client's order, one token each.

        The client's first offer that we speak wins. No offer at all means the first encoding; the response must then
        carry no ``Sec-WebSocket-Protocol`` (RFC 6455 section 4.1: a client fails on one that it did not ask for). None
        means that there were offers and none is ours: answer 400. Tokens are compared exactly, as case matters in them;
        what is answered is always a name of ours, so nothing of the request is ever reflected.
        """
        none_offered = True
        for offer in offers:
            none_offered = False
            if offer in self._by_subprotocol:
                return self._by_subprotocol[offer]
        return self.encodings[0] if none_offered else None

    def of_each(self, build: Callable[[Codec], bytes]) -> Part:
        """What each codec makes of something, for the core to choose from: a tuple; with one codec, just its bytes."""
        if len(self.all) == 1:
            return build(self.all[0])
        return tuple(build(codec) for codec in self.all)
