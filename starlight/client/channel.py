"""A channel as one client joined it: made by `StarlightClient.join`, iterated over for its publications."""

import contextlib
from collections.abc import AsyncIterator, Callable, Generator
from types import TracebackType
from typing import Any, Protocol, Self

from starlight.client.inbox import Inbox
from starlight.errors import ConnectionClosed
from starlight.protocols.native.client import Publication

__all__ = ["JoinedChannel"]


class JoiningClient(Protocol):
    """What a channel asks of its client."""

    async def leave(self, channel: str) -> None: ...


class JoinCall(Protocol):
    """Joins a channel; `enter` is called with the reply, before the next message is read."""

    async def __call__(self, channel: str, enter: Callable[[], None]) -> None: ...


class JoinedChannel:
    """A channel as this client joined it; made by `StarlightClient.join`. Iterate over it for its publications.

    After a reconnect it is joined again and the iteration goes on; what was published in between is not seen (a channel
    without history). One that is refused then for a rate is asked for again until it is joined; one that is refused
    for a limit, or by a fault of the server, for a minute. Any other refusal ends the iteration with that
    `RequestFailed`.

    Attributes:
        channel: its name.
    """

    def __init__(
        self,
        client: JoiningClient,
        channel: str,
        inbox: Inbox[Publication],
        *,
        joined: dict[str, "JoinedChannel"],
        join: JoinCall,
    ) -> None:
        self.channel = channel
        self.inbox = inbox
        self._client = client
        self._joined = joined  # the client's, by name
        self._ask_to_join = join
        self._has_joined = False

    @property
    def dropped_messages(self) -> int:
        """How many publications were dropped because nobody read them in time."""
        return self.inbox.dropped_messages

    async def leave(self) -> None:
        """Leave the channel; the iteration ends after what had come."""
        self.inbox.end()
        if self._joined.get(self.channel) is self:
            await self._client.leave(self.channel)

    def __await__(self) -> Generator[Any, None, Self]:
        return self._join().__await__()

    async def __aenter__(self) -> Self:
        return await self._join()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ConnectionClosed, TimeoutError):  # gone is gone: there is nothing left to leave
            await self.leave()

    def __aiter__(self) -> AsyncIterator[Publication]:
        return self

    async def __anext__(self) -> Publication:
        if not self._has_joined:
            await self._join()
        return await self.inbox.get()

    async def _join(self) -> Self:
        await self._ask_to_join(self.channel, self._enter)
        return self

    def _enter(self) -> None:
        """With the reply, before the next message is read: no publication is missed, none comes too early."""
        self._has_joined = True
        self._joined[self.channel] = self
