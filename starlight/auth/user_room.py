"""Room for a user's next client, where the user has as many as are allowed: connections that are silent make it.

After a network has swallowed connections the node still has them, until pings go unanswered; the user whose page is
loaded again must not be locked out by them. So at the limit the user's connections are pinged at once, and the newcomer
waits for a moment. What doesn't answer is ended, the oldest first and no more than it takes; what answers never is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from typing import Final, Protocol

__all__ = ["OWED_S", "UserRoom"]

OWED_S: Final = 3.0
"""A ping that was unanswered for so long makes its connection give way: several round trips of a slow mobile network,
and no longer than a person waits for a page."""

LOOK_S: Final = 0.05
LOOKS: Final = round(OWED_S * 1.5 / LOOK_S)
"""A newcomer looks so often, for half as long again: a loop that is late must not turn it away."""


class UserConnection(Protocol):
    """What is asked of a connection."""

    @property
    def silent_ms(self) -> int: ...
    def probe(self) -> None: ...
    def give_way(self) -> None: ...


class UserClient(Protocol):
    """What is asked of a client."""

    @property
    def connection(self) -> UserConnection: ...


class UserRoom:
    """The newcomers that wait."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()  # by user, without zeros

    def make(self, clients: Collection[UserClient], limit: int) -> bool:
        """Whether there is room for one more; ends connections that are silent, oldest first, as far as it takes.

        Args:
            clients: the user's, the oldest first.
            limit: how many there may be; 0: no limit.
        """
        if not limit:
            return True
        excess = len(clients) + 1 - limit
        if excess <= 0:
            return True
        for client in list(clients):
            if client.connection.silent_ms >= OWED_S * 1000:
                client.connection.give_way()
                excess -= 1
                if excess <= 0:
                    return True
        return False

    async def wait(self, user: str, clients: Callable[[], Collection[UserClient]], limit: Callable[[], int]) -> bool:
        """Ping a user's connections and wait until one has gone or is silent: then True. False once all have answered.

        Takes `OWED_S` and a half at most. No more newcomers wait than the user may have clients.

        Args:
            user: whose.
            clients: the user's at the time, the oldest first.
            limit: how many there may be at the time.
        """
        if self._waiting[user] >= limit():
            return False
        self._waiting[user] += 1
        try:
            for client in list(clients()):
                client.connection.probe()
            for _ in range(LOOKS):
                await asyncio.sleep(LOOK_S)
                if self.make(clients(), limit()):
                    return True
                if not any(client.connection.silent_ms for client in clients()):
                    return False
            return False
        finally:
            self._waiting[user] -= 1
            if not self._waiting[user]:
                del self._waiting[user]
