"""The client's requests under way: each waits for the reply with its id, or for the end of the link it was sent on."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Request", "Requests"]

Link = TypeVar("Link")
Reply = TypeVar("Reply")


class Request(Generic[Link, Reply]):
    """One request. `reply` is awaited by who asked; `link` and `on_ok` are read when the reply is dispatched."""

    __slots__ = ("id", "link", "on_ok", "reply")

    def __init__(self, id: int, link: Link, on_ok: Callable[[Reply], None] | None) -> None:
        self.id = id
        self.link = link
        self.on_ok = on_ok
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def succeed(self, reply: Reply) -> None:
        """Hand over the reply; `on_ok` runs first, before the next message is even looked at."""
        if not self.reply.done():
            if self.on_ok is not None:
                self.on_ok(reply)
            self.reply.set_result(reply)

    def fail(self, error: Exception) -> None:
        """Raise in who asked, unless it gave up waiting."""
        if not self.reply.done():
            self.reply.set_exception(error)


class Requests(Generic[Link, Reply]):
    """Requests by id. Ids are never used twice, so a late reply can't be taken for another's."""

    def __init__(self) -> None:
        self._by_id: dict[int, Request[Link, Reply]] = {}
        self._ids = itertools.count(1)

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, link: Link, on_ok: Callable[[Reply], None] | None = None) -> Request[Link, Reply]:
        """A new request; whoever adds it removes it."""
        request = Request[Link, Reply](next(self._ids), link, on_ok)
        self._by_id[request.id] = request
        return request

    def get(self, id: int | None) -> Request[Link, Reply] | None:
        """The request that waits for this id, if one does."""
        return None if id is None else self._by_id.get(id)

    def remove(self, request: Request[Link, Reply]) -> None:
        """Forget a request, answered or not."""
        del self._by_id[request.id]

    def fail_all(self, link: Link, error: Exception) -> None:
        """The link has ended: no reply will come for what was sent on it."""
        for request in list(self._by_id.values()):
            if request.link is link:
                request.fail(error)
