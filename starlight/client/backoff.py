"""When a client that lost its connection tries again.

Strategy: full jitter. The wait is anywhere between what the server asked for and that plus a limit, which doubles with
each attempt. No I/O, and the clock is passed in.
"""

import random
import time
from collections.abc import Callable
from typing import Final

from starlight.close_codes import Policy

__all__ = ["ASKED_LIMIT_S", "HEAD_START", "STABLE_AFTER_S", "Backoff"]

STABLE_AFTER_S: Final = 10.0
"""Only a connection that lasted longer resets the doubling, so that an evict-reconnect loop slows down."""

ASKED_LIMIT_S: Final = 60.0
"""The longest wait that a server may ask for. A drain asks for 5.5 s at most; no server may lock its clients out."""

HEAD_START: Final = 2
"""Doublings ahead for close codes with the policy ``backoff``: everybody was sent away, so everybody spreads."""

_DOUBLINGS_LIMIT: Final = 32
"""Far beyond any upper limit, and still a number."""


class Backoff:
    """The attempts of one client.

    Args:
        first_s: the limit of the first wait.
        most_s: what the doubling ends at.
        clock: monotonic seconds.
    """

    def __init__(self, first_s: float, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.asked_s = 0.0
        """What the server asked for; taken up by the next `delay_s`."""
        self._first_s = first_s
        self._most_s = most_s
        self._clock = clock
        self._attempts = 0
        self._opened_s = 0.0

    def ask(self, retry_ms: object) -> None:
        """The server says when to come back. It is held to 0 to `ASKED_LIMIT_S`; what is no number asks for nothing."""
        self.asked_s = 0.0
        if isinstance(retry_ms, (int, float)) and retry_ms > 0:  # NaN is not
            self.asked_s = min(retry_ms, ASKED_LIMIT_S * 1000) / 1000

    def opened(self) -> None:
        """A connection was opened and logged in."""
        self._opened_s = self._clock()

    def lost(self) -> None:
        """It has ended."""
        if self._clock() - self._opened_s > STABLE_AFTER_S:
            self._attempts = 0

    def delay_s(self, policy: Policy) -> float:
        """How long to wait before the next attempt, by the policy of the close code."""
        doublings = min(self._attempts + (HEAD_START if policy == "backoff" else 0), _DOUBLINGS_LIMIT)
        self._attempts += 1
        asked_s, self.asked_s = self.asked_s, 0.0
        return asked_s + random.uniform(0, min(self._most_s, self._first_s * 2**doublings))
