"""What waits for the application on the client's side: bounded in messages and in bytes, oldest dropped first.

A client that stopped reading the socket instead would also stop receiving the replies its own reader may be waiting
for, and would be evicted by the server as a slow consumer. So it goes on reading, and what is dropped is never silent:
the next message handed out says in ``missed`` how many came before it and are gone.
"""

import asyncio
from collections import deque
from typing import Generic, Protocol, TypeVar

__all__ = ["Inbox"]


class Countable(Protocol):
    """A message that can say how many were dropped before it."""

    missed: int


T = TypeVar("T", bound=Countable)


class Inbox(Generic[T]):
    """A queue from the reader of the socket, which never waits, to the application, which may.

    Law: ``len(self) <= limit_messages``, and ``size_bytes <= limit_bytes`` unless it holds one message alone.

    Args:
        limit_messages: more than these, and the oldest is dropped.
        limit_bytes: the same, counted in bytes as received.
    """

    def __init__(self, limit_messages: int, limit_bytes: int) -> None:
        self.limit_messages = limit_messages
        self.limit_bytes = limit_bytes
        self.dropped_messages = 0
        self.size_bytes = 0
        self._waiting: deque[tuple[T, int]] = deque()
        self._missed = 0  # dropped since the last message was handed out
        self._changed = asyncio.Event()
        self._is_ended = False
        self._error: Exception | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: T, size_bytes: int) -> None:
        """Append a message, at the price of the oldest ones if it is full. Ignored once the inbox has ended."""
        if self._is_ended:
            return
        self._waiting.append((message, size_bytes))
        self.size_bytes += size_bytes
        while len(self._waiting) > self.limit_messages or (
            self.size_bytes > self.limit_bytes and len(self._waiting) > 1
        ):
            self.size_bytes -= self._waiting.popleft()[1]
            self.dropped_messages += 1
            self._missed += 1
        self._changed.set()

    def skip(self) -> None:
        """A message came that can't be handed out: the next one says that it missed one."""
        self._missed += 1

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come: readers get what is left, then `error`, or the end of the iteration."""
        if not self._is_ended:
            self._is_ended = True
            self._error = error
            self._changed.set()

    async def get(self) -> T:
        """The oldest message, waiting for one if there is none.

        Raises:
            StopAsyncIteration: the inbox is empty and has ended.
            Exception: the same, with the error it ended with.
        """
        while not self._waiting:
            if self._is_ended:
                raise self._error or StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        message, size_bytes = self._waiting.popleft()
        self.size_bytes -= size_bytes
        message.missed, self._missed = self._missed, 0
        return message
