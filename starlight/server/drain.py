"""The drain: every client of a node is sent away, none before its outbox has gone out, and not all at once.

Strategy: who closes 10,000 connections in one turn has 10,000 clients log in elsewhere a moment later. So closes are
spread: at most `drain_rate` a second, clients in random order, each told a random time after which to come back. Until
its own close a client is served as ever: what it publishes is acknowledged, and what others publish reaches it, which
is why the acknowledged messages of a drain are not lost.

The law: the drain ends in time. If the rate is too low for so many clients, it is raised, evenly, and the log says so;
a close frame a little early does less harm than the cut at the end.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

from starlight import close_codes
from starlight.ends import Cause

if TYPE_CHECKING:
    from starlight.net.connection import Endpoint
    from starlight.session.session import Session

__all__ = ["Drain", "retry_ms"]

log = logging.getLogger(__name__)

RETRY_MIN_MS: Final = 500
RETRY_MAX_MS: Final = 5_500
"""A drained client is told to come back after a random time between these two. Accepting and logging in costs some
200 µs, so 10,000 clients over 5 s keep the next node less than half busy."""

TICK_S: Final = 0.02
"""Between two lots of closes, and between two looks whether all have gone: short enough that a lot is small (30 clients
at the default rate), long enough to cost nothing."""

BURST_S: Final = 0.1
"""How much of the rate a loop that was held up may make good at once."""

CLOSING_SHARE: Final = 0.8
"""The share of the drain time in which clients are sent away; in the rest the last ones take what they are owed."""

HANDSHAKE_GRACE_S: Final = 1.0
"""How long a drain waits for handshakes that were under way: some round trips to the other side of the world, TLS
included. Their clients then get a close frame instead of a reset."""


DRAIN: Final = Cause("drain")


def retry_ms() -> int:
    """When a client that is sent away shall come back, in milliseconds: each at a time of its own."""
    return random.randint(RETRY_MIN_MS, RETRY_MAX_MS)


class Drain:
    """One drain, of the connections that an acceptor has when its node accepts no more.

    Args:
        acceptor: the node's.
        rate: closes a second at most.
        deadline_s: by the loop's clock, when all must be over; one that has passed: no spreading, no waiting.
        end_handshakes: cuts off whoever is still in the handshake.
        cause: recorded with every end.
    """

    def __init__(
        self,
        acceptor: Endpoint,
        rate: int,
        deadline_s: float,
        end_handshakes: Callable[[], None],
        cause: Cause = DRAIN,
    ) -> None:
        self._acceptor = acceptor
        self._cause = cause
        self._end_handshakes: Callable[[], None] | None = end_handshakes
        self._loop = asyncio.get_running_loop()
        self._deadline_s = deadline_s
        self._grace_end_s = self._loop.time() + HANDSHAKE_GRACE_S
        self._asked_rate = rate
        self._rate = self._rate_in_time(rate)
        self._credit = max(1.0, self._rate * TICK_S)
        self._waiting: list[Session] = []

    def hurry(self, deadline_s: float) -> None:
        """An earlier deadline; a later one changes nothing, as the first was promised to whoever waits."""
        if deadline_s < self._deadline_s:
            self._deadline_s = deadline_s
            self._rate = max(self._rate, self._rate_in_time(self._asked_rate))

    def _rate_in_time(self, rate: int) -> float:
        """The rate, or the one that is needed to be done in time."""
        number = self._acceptor.connections
        window_s = (self._deadline_s - self._loop.time()) * CLOSING_SHARE
        if window_s <= 0:
            return math.inf
        needed = number / window_s
        if needed <= rate:
            return rate
        log.warning(
            "%d connections in %.3g s are %.0f closes a second, more than drain_rate=%d: a longer drain_timeout would "
            "spare the nodes that they go to",
            number,
            window_s,
            needed,
            rate,
        )
        return needed

    async def run(self) -> None:
        """Send everybody away and wait until they are gone; at the deadline, cut off who is left."""
        self._send_away()
        last_s = self._loop.time()
        while self._acceptor.connections and last_s < self._deadline_s:
            await asyncio.sleep(TICK_S * random.uniform(0.5, 1.5))
            now_s = self._loop.time()
            self._credit = min(self._credit + self._rate * (now_s - last_s), max(1.0, self._rate * BURST_S))
            last_s = now_s
            self._send_away()
            if self._end_handshakes is not None and now_s >= self._grace_end_s:
                self._end_handshakes()
                self._end_handshakes = None
        if self._acceptor.connections:
            log.warning("drain: %d connections did not end in time and are cut off", self._acceptor.connections)
            await self._cut_off()

    def _send_away(self) -> None:
        """Close as many connections as the rate allows by now; each client comes back at a time of its own."""
        if not self._waiting:  # from the second time on, those whose handshake has ended since
            owners = cast("Sequence[Session]", self._acceptor.core.owners())
            self._waiting = [connection for connection in owners if connection.is_open]
            random.shuffle(self._waiting)
        while self._waiting and self._credit >= 1:
            connection = self._waiting.pop()
            if connection.is_open:
                self._credit -= 1
                connection.close(close_codes.GOING_AWAY, None, retry_ms(), self._cause)

    async def _cut_off(self) -> None:
        """Close the sockets that are left, and let the loop notice."""
        for connection in cast("Sequence[Session]", self._acceptor.core.owners()):
            connection.abort()
        await asyncio.sleep(0)
