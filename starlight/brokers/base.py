"""The seam between a node's hub and what carries messages between nodes.

It has two sides of one shape. A `Broker` does for the clients of all nodes what a `Deliverer`, the hub, does for those
of its own. So a node that is alone needs nothing in between: there the broker's calls *are* the hub's (`memory`).

The law, which `tests/brokers` holds every broker to:

- An answer is a plain value if it is there at once, else a `Later`. Every `Later` is answered, within a bounded time.
- Publications of one sender to one channel are delivered at each node in the order of the calls; so are its directs to
  one user, and its broadcasts. All clients of a node see one order of a channel.
- What a node publishes is delivered to its own clients before the answer, if the node follows the channel.
- A refusal is a `RequestError`: raised by the call, or the answer of its `Later`. Nothing was delivered then.

`data` is opaque: bytes that a broker carries and never reads. Everything runs on the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, NoReturn, Protocol, TypeVar, final

from starlight.errors import RequestError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from starlight.protocols.base import Part

__all__ = ["Broker", "Deliverer", "Later", "Present", "RevokedKind", "Sender"]

Answer = TypeVar("Answer")

RevokedKind = Literal["user", "token"]
"""What is revoked: a user by name, or a token by its id."""


class Sender:
    """Who sends: a client, of this node or of another, or the application.

    Attributes:
        id: the client's name, unique among all nodes; "" for the application.
        user: the user's name; None for the application.
        heads: how messages of this sender begin, by channel. The hub's: a broker passes an equal `Sender` of another
            node again, if it can, but carries no heads.
    """

    __slots__ = ("heads", "id", "user")

    def __init__(self, id: str, user: str | None) -> None:
        self.id = id
        self.user = user
        self.heads: dict[str, Part] = {}


class Present(NamedTuple):
    """Who is in a channel.

    Attributes:
        users: names of some of the users, as many as were asked for.
        clients: how many clients, all users together.
    """

    users: list[str]
    clients: int


@final
class Later(Generic[Answer]):
    """An answer that a broker does not have yet. One asks for it, and hears of it once."""

    __slots__ = ("_answer", "_callback", "_is_answered")

    def __init__(self) -> None:
        self._callback: Callable[[Answer | RequestError], None] | None = None
        self._is_answered = False
        self._answer: Answer | RequestError

    def then(self, callback: Callable[[Answer | RequestError], None]) -> None:
        """Have `callback` called with the answer, or with the refusal: in `answer`, or at once if that was called."""
        assert self._callback is None, "one asks"
        self._callback = callback
        if self._is_answered:
            callback(self._answer)

    def answer(self, answer: Answer | RequestError) -> None:
        """Here it is. To be called once, by the broker."""
        assert not self._is_answered, "one answer"
        self._is_answered = True
        self._answer = answer
        if self._callback is not None:
            self._callback(answer)


class Deliverer(Protocol):
    """What a broker asks of a node: to do something for the clients that the node itself has. Nothing here waits."""

    def deliver_publication(self, channel: str, sender: Sender, data: Buffer, /) -> int:
        """Hand a publication to the members of a channel, 0 if there is none; their number."""

    def deliver_direct(self, user: str, sender: Sender, data: Buffer, /) -> int:
        """Hand a message to the clients of a user; their number. Raises `RequestError` 120 if none is here."""

    def deliver_broadcast(self, sender: Sender, data: Buffer, /) -> int:
        """Hand a message to every client; their number."""

    def list_present(self, channel: str, limit: int, /) -> Present:
        """Who is in a channel: at most `limit` users, the number of all clients."""

    def end_revoked(self, kind: RevokedKind, name: str, seconds: float, by: str, /) -> int:
        """End the clients that are revoked, and refuse their tokens for so many seconds; the number of those clients.

        by: who asked, for operators. Raises OverflowError if there are too many revocations, after they were ended.
        """


class Broker(Protocol):
    """What a hub asks of the outside. Each method says what comes of it on all nodes.

    Attributes:
        answers_at_once: no answer is ever a `Later`, so the hub need not look.
    """

    @property
    def answers_at_once(self) -> bool: ...

    def attach(self, deliverer: Deliverer, /) -> None:
        """Deliver to this node. Called once, before anything else."""

    def publish(self, channel: str, sender: Sender, data: Buffer, /) -> int | Later[int]:
        """Publish to a channel; the number of its members on this node."""

    def direct(self, user: str, sender: Sender, data: Buffer, /) -> int | Later[int]:
        """Send to the clients of a user; their number on this node. A refusal (120) if no node has one."""

    def broadcast(self, sender: Sender, data: Buffer, /) -> int | Later[int]:
        """Send to every client; their number on this node."""

    def present(self, channel: str, limit: int, /) -> Present | Later[Present]:
        """Who is in a channel: at most `limit` users of all nodes, the number of all clients."""

    def revoke(self, kind: RevokedKind, name: str, seconds: float, by: str, /) -> int | Later[int]:
        """Revoke a user or a token on all nodes: `Deliverer.end_revoked`. The number of clients that it ended here."""

    def follow(self, channel: str, /) -> Later[None] | None:
        """Deliver what is published to a channel, from the answer on. Called before its first member joins."""

    def unfollow(self, channel: str, /) -> None:
        """The channel's last member has left: deliver it no more. Never called before the answer to `follow`."""

    def history(self, channel: str, /) -> NoReturn:
        """What was published before. No broker keeps that yet: raises `RequestError` 108."""
