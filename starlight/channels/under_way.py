"""What one client has asked of a broker that answers later, and the replies that wait behind it.

A client has an `UnderWay` only while there is something in it; with a broker that answers at once it never has one. The
law: replies go out in the order of the requests. So each request puts a `Reply` at the end, and a reply is sent when
all before it have been.

How much is under way is bounded, whatever it is: beyond `LIMIT` the client's next message waits, and with that the
connection reads no more. It goes on when half of them are done, so that a client that always has more to publish costs
a task for 32 messages and not for each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["LIMIT", "Reply", "UnderWay"]

LIMIT: Final = 64
"""Requests of one client under way, or answered and behind one that is. With an engine
a millisecond away, that lets one client publish 64,000 a second."""

ROOM: Final = LIMIT // 2
"""A message that waits for room goes on when so many are left."""


class Reply:
    """The place of one reply. `message` is None until it is known, b"" if the client wants none."""

    __slots__ = ("message",)

    def __init__(self, message: bytes | None = None) -> None:
        self.message = message


class UnderWay:
    """The requests of one client that are under way, oldest first.

    Args:
        send: sends a reply to the client.
    """

    __slots__ = ("_replies", "_resume_at", "_send", "_waiting")

    def __init__(self, send: Callable[[bytes], object]) -> None:
        self._send = send
        self._replies: deque[Reply] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._resume_at = 0

    def __len__(self) -> int:
        return len(self._replies)

    @property
    def is_full(self) -> bool:
        """Whether the next message has to wait for room."""
        return len(self._replies) >= LIMIT

    def expect(self) -> Reply:
        """A request is under way: the place of its reply."""
        reply = Reply()
        self._replies.append(reply)
        return reply

    def add(self, message: bytes) -> None:
        """A reply that is known already, behind those that are not."""
        self._replies.append(Reply(message))

    def settle(self, reply: Reply, message: bytes) -> None:
        """Fill in a reply, and send all that wait for no other. Nothing is sent after `close`."""
        reply.message = message
        replies = self._replies
        while replies and (first := replies[0].message) is not None:
            replies.popleft()
            if first:
                self._send(first)
        self._wake()

    def room(self) -> asyncio.Future[None]:
        """Done when there is room for more requests, or when the client has gone. One message waits at a time."""
        return self._wait(ROOM)

    def all_done(self) -> asyncio.Future[None]:
        """Done when nothing is under way, or when the client has gone. One message waits at a time."""
        return self._wait(0)

    def close(self) -> None:
        """The client has gone: forget its replies, and wake what waits."""
        self._replies.clear()
        self._wake()

    def _wait(self, resume_at: int) -> asyncio.Future[None]:
        self._resume_at = resume_at
        self._waiting = asyncio.get_running_loop().create_future()
        return self._waiting

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None and len(self._replies) <= self._resume_at:
            self._waiting = None
            if not waiting.done():  # cancelled, with the task that waited
                waiting.set_result(None)
