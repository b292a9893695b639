"""Joins again, on a new connection, the channels that a client had joined.

Strategy: many channels in one message, and one message after the other, no faster than the welcome allows. What is
refused for a rate is tried again after a wait, for ever; what is refused for what may be the client's own connection of
before (a limit) or a fault of the server, for a minute. Any other refusal ends that channel alone.

The first round comes before anything that the application asks, so that what it publishes finds it joined. What is left
after it goes on beside the application's requests.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

from starlight.client.pace import Pace
from starlight.close_codes import ErrorCode
from starlight.errors import ClientError, MessageTooBig, RequestFailed
from starlight.protocols.native.client import Ok

__all__ = ["PATIENCE_S", "Rejoin"]

PATIENCE_S: Final = 60.0
"""How long a channel is tried again that is full, or that the server fails at: longer than a connection that is dead
counts on the server (ping and pong, 35 s)."""

RETRY_S: Final = 1.0
RETRY_LIMIT_S: Final = 30.0
"""The wait before the next round, doubling up to the limit."""

_FOR_EVER: Final = frozenset((ErrorCode.TOO_MANY_REQUESTS,))
_FOR_A_WHILE: Final = frozenset((ErrorCode.INTERNAL, ErrorCode.LIMIT_EXCEEDED))


class Rejoin:
    """The channels of one client on one connection.

    Args:
        channels: those that the client has joined by its own reckoning; looked at anew in each step.
        ask: sends one join, with the fields it is given, and returns the reply or raises `RequestFailed`.
        leave: a channel was joined again that nobody wants any more.
        refuse: a channel was refused for good.
        pace: what the server allows.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        channels: Mapping[str, object],
        *,
        ask: Callable[[dict[str, Any]], Awaitable[Ok]],
        leave: Callable[[str], None],
        refuse: Callable[[str, ClientError], None],
        pace: Pace,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channels = channels
        self._ask = ask
        self._leave = leave
        self._refuse = refuse
        self._pace = pace
        self._clock = clock
        self._waiting = dict.fromkeys(channels)
        self._one_by_one = False
        self._patient_until_s = clock() + PATIENCE_S

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to join."""
        return not self._waiting

    async def round(self, within_s: float = float("inf")) -> None:
        """Try each channel that is left once; stops at the first refusal for a rate, and begins nothing after
        `within_s`. Raises what `ask` raises, but `RequestFailed`."""
        end_s = self._clock() + within_s
        pause_s = 0.0
        for names in self._messages():
            await asyncio.sleep(pause_s)
            if self._clock() >= end_s or not await self._join(names):
                return
            pause_s = self._pace.pause_s(names)

    async def rounds(self) -> None:
        """Rounds, with waits between them, until nothing is left. Raises as `round`."""
        wait_s = RETRY_S
        while self._waiting:
            await asyncio.sleep(random.uniform(wait_s / 2, wait_s))
            wait_s = min(2 * wait_s, RETRY_LIMIT_S)
            await self.round()

    def _messages(self) -> Iterator[list[str]]:
        """The names that are left, as many together as fit into one message."""
        names = list(self._waiting)
        while True:
            for name in [name for name in names if name not in self._channels]:  # left in the meantime
                self._waiting.pop(name, None)
            names = [name for name in names if name in self._waiting]
            if not names:
                return
            count = 1 if self._one_by_one else self._pace.take(names)
            yield names[:count]
            names = names[count:]

    async def _join(self, names: list[str]) -> bool:
        """One message; False if the server had enough for now."""
        fields = {"channel": names[0]} if len(names) == 1 else {"channels": [{"channel": name} for name in names]}
        try:
            reply = await self._ask(fields)
        except MessageTooBig as error:
            if len(names) > 1:
                raise
            self._give_up(names[0], error)  # not even alone
            return True
        except RequestFailed as error:
            if len(names) > 1 and error.code not in _FOR_EVER | _FOR_A_WHILE:
                self._one_by_one = True  # whatever is wrong with the message, it is not wrong with all channels
                return False
            refusals = dict.fromkeys(names, error)
        else:
            refusals = {
                item.channel: RequestFailed(item.error.code, item.error.name, item.error.message)
                for item in reply.channels
                if item.error is not None
            }
        for name in names:
            self._settle(name, refusals.get(name))
        return not any(error.code in _FOR_EVER for error in refusals.values())

    def _settle(self, name: str, error: RequestFailed | None) -> None:
        if error is not None and self._may_try_again(error.code):
            return None
        if error is not None and error.code != ErrorCode.ALREADY_JOINED:
            return self._give_up(name, error)
        self._waiting.pop(name, None)
        if name not in self._channels:
            self._leave(name)
        return None

    def _give_up(self, name: str, error: ClientError) -> None:
        self._waiting.pop(name, None)
        if name in self._channels:
            self._refuse(name, error)

    def _may_try_again(self, code: int) -> bool:
        return code in _FOR_EVER or (code in _FOR_A_WHILE and self._clock() < self._patient_until_s)
