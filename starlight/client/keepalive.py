"""When a connection on which nothing comes is asked for a sign of life, and when it is given up.

Strategy: the server pings, so that something comes at least every `ping` seconds, and both sides go by what it says in
its welcome: a client that heard nothing for `ping` and `pong` together is alone, whatever its socket says. Before that
it asks, since a server may find that it heard enough of this client to ping it. Pure: times in, decisions out.

Law: nobody is given up for a time in which this process itself stood still. A look that comes late asks first.
"""

import math
from typing import Final, Literal

__all__ = ["ASLEEP_S", "Keepalive"]

PONG_TIMEOUT_S: Final = 10.0
"""How long to wait for the pong to our own ping, as long as the server waits for ours."""

ASLEEP_S: Final = 1.0
"""A look that comes so much later than it was due means that the process stood still."""

LEAST_S: Final = 0.05
MOST_S: Final = 3_600.0
"""What a server may say in its welcome is held to this."""


class Keepalive:
    """One connection.

    Args:
        ping_s: how often the server pings.
        pong_s: how long it waits for the pong.
        keepalive_s: what this side wants to know at least as often; it makes the times shorter, never longer.
        now_s: monotonic seconds.

    Attributes:
        ask_s: the silence after which to ask.
        silence_s: the silence after which to give up.
        next_s: when to look again.
    """

    def __init__(self, ping_s: float, pong_s: float, keepalive_s: float, now_s: float) -> None:
        ping_s, pong_s = _held(ping_s), _held(pong_s)
        self.ask_s = min(keepalive_s, ping_s + pong_s / 2)
        self.silence_s = min(ping_s + pong_s, keepalive_s + min(PONG_TIMEOUT_S, keepalive_s))
        self.next_s = now_s + self.ask_s
        self._since_s = now_s
        self._has_asked = False

    def look(self, now_s: float, heard_s: float) -> Literal["ask", "drop", "wait"]:
        """What to do now. `heard_s`: when something last came."""
        if heard_s > self._since_s:
            self._since_s = heard_s
            self._has_asked = False
        if now_s - self.next_s > ASLEEP_S:
            self._since_s = now_s - self.ask_s
            self._has_asked = False
        silent_s = now_s - self._since_s
        if self._has_asked:
            if silent_s >= self.silence_s:
                return "drop"
        elif silent_s >= self.ask_s:
            self._has_asked = True
            self.next_s = max(self._since_s + self.silence_s, now_s + LEAST_S)  # time for the answer in any case
            return "ask"
        self.next_s = self._since_s + (self.silence_s if self._has_asked else self.ask_s)
        return "wait"


def _held(seconds: float) -> float:
    return min(max(seconds, LEAST_S), MOST_S) if math.isfinite(seconds) else MOST_S
