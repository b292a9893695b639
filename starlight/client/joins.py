"""Joins that the application asks for: many in one message where it asks for many at once.

Strategy: what is asked for in one turn of the loop goes out together, what is asked for before the reply comes goes
together in the next message, and so on, no faster than the welcome allows. So a program that joins a thousand channels
at once sends four messages, and one that joins one after the other waits for nothing. What is refused for a rate is
asked again after a wait. A refusal of several together is no channel's own: then each is asked alone.

Law: a channel is in one message at a time, and a caller's time is that in which the server answers no join at all: it
begins anew with each answer, so that nobody who waits for a turn is given up.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from starlight.client.pace import Pace
from starlight.close_codes import ErrorCode
from starlight.errors import ClientError, MessageTooBig, RequestFailed
from starlight.protocols.native.client import Ok, encode

__all__ = ["Joins"]

RETRY_S: Final = 1.0
RETRY_LIMIT_S: Final = 5.0
"""The wait after a refusal for a rate, doubling up to the limit: a server forgives a client's rate within seconds."""

Link = TypeVar("Link")


class _Wish:
    """One caller that waits for a channel. `enter` is called with the reply, before the next message is read."""

    __slots__ = ("channel", "enter", "is_alone", "is_sent", "outcome", "time")

    def __init__(self, channel: str, enter: Callable[[], None], time: asyncio.Timeout) -> None:
        self.channel = channel
        self.enter = enter
        self.time = time
        self.is_alone = False
        self.is_sent = False
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, error: Exception | None) -> None:
        if self.outcome.done():
            return
        if error is None:
            self.enter()
            self.outcome.set_result(None)
        else:
            self.outcome.set_exception(error)


class Joins(Generic[Link]):
    """The joins of one client.

    Args:
        usable_link: returns the connection as soon as there is one; raises when there will be none.
        ask: sends one join on a connection and returns the reply or raises; calls `on_ok` with it first.
        leave: tells the server that a join is not wanted any more that it may have carried out.
        pace: of a connection.
        timeout_s: how long a caller waits without any answer of the server.
    """

    def __init__(
        self,
        usable_link: Callable[[], Awaitable[Link]],
        ask: Callable[[Link, dict[str, Any], Callable[[Ok], None]], Awaitable[Ok]],
        leave: Callable[[str], None],
        pace: Callable[[Link], Pace],
        timeout_s: float,
    ) -> None:
        self._usable_link = usable_link
        self._ask = ask
        self._leave = leave
        self._pace = pace
        self._timeout_s = timeout_s
        self._waiting: dict[_Wish, None] = {}  # in order; those that are under way included
        self._task: asyncio.Task[None] | None = None

    async def join(self, channel: str, enter: Callable[[], None]) -> None:
        """Join a channel; `enter` is called with the reply, before the next message is read.

        Raises `RequestFailed`, `ConnectionClosed` and `MessageTooBig` as a request does, but never for a rate;
        TimeoutError if the server answers no join for the timeout; TypeError if the name is no text.
        """
        encode("join", channel=channel)
        try:
            async with asyncio.timeout(self._timeout_s) as time:
                await self._wish(channel, enter, time)
        except TimeoutError:
            raise TimeoutError(f"join: no reply within {self._timeout_s:g} s") from None

    async def settled(self, channel: str) -> None:
        """Return when the joins of a channel that are asked for by now have had their answers."""
        outcomes = [wish.outcome for wish in self._waiting if wish.channel == channel]
        if outcomes:
            await asyncio.wait(outcomes)

    def cancel(self, error: Exception) -> None:
        """There will be no connection any more: who still waits gets the error."""
        if self._task is not None:
            self._task.cancel()
        for wish in list(self._waiting):
            wish.settle(error)
        self._waiting.clear()

    async def _wish(self, channel: str, enter: Callable[[], None], time: asyncio.Timeout) -> None:
        wish = _Wish(channel, enter, time)
        self._waiting[wish] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="starlight joins")
        try:
            await wish.outcome
        except (TimeoutError, asyncio.CancelledError):
            if wish.is_sent:
                self._leave(channel)
            raise
        finally:
            self._waiting.pop(wish, None)

    async def _run(self) -> None:
        wait_s = RETRY_S
        while self._waiting:
            wishes: list[_Wish] = []
            try:
                link = await self._usable_link()
                wishes = self._next(self._pace(link))
                was_enough = await self._send(link, wishes)
            except Exception as error:  # the connection has ended, or no reply came: told to those it is about
                for wish in wishes or list(self._waiting):
                    self._conclude(wish, error)
                continue
            if was_enough:
                pause_s = random.uniform(wait_s / 2, wait_s)
                wait_s = min(2 * wait_s, RETRY_LIMIT_S)
            else:
                pause_s = self._pace(link).pause_s([wish.channel for wish in wishes])
                wait_s = RETRY_S
            if self._waiting:
                self._begin_time_anew(pause_s)
                await asyncio.sleep(pause_s)

    def _next(self, pace: Pace) -> list[_Wish]:
        """Those of the next message: each channel once, and in order."""
        first = next(iter(self._waiting))
        if first.is_alone:
            return [first]
        wishes: dict[str, _Wish] = {}
        for wish in self._waiting:
            if not wish.is_alone:
                wishes.setdefault(wish.channel, wish)
        return list(wishes.values())[: pace.take(list(wishes))]

    async def _send(self, link: Link, wishes: Sequence[_Wish]) -> bool:
        """One message; True if the server had enough for now."""
        names = [wish.channel for wish in wishes]
        fields = {"channel": names[0]} if len(names) == 1 else {"channels": [{"channel": name} for name in names]}
        errors: dict[str, ClientError] = {}

        def take(reply: Ok) -> None:
            for item in reply.channels:
                if item.error is not None:
                    errors[item.channel] = RequestFailed(item.error.code, item.error.name, item.error.message)
            for wish in wishes:
                self._conclude(wish, errors.get(wish.channel))

        for wish in wishes:
            wish.is_sent = True
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._ask(link, fields, take)
        except (RequestFailed, MessageTooBig) as error:
            if len(wishes) > 1 and not _is_rate(error):
                for wish in wishes:
                    wish.is_sent, wish.is_alone = False, True
            else:
                errors = dict.fromkeys(names, error)
                for wish in wishes:
                    self._conclude(wish, error)
        return any(map(_is_rate, errors.values()))

    def _conclude(self, wish: _Wish, error: Exception | None) -> None:
        """Tell a caller what became of its channel, unless that has to be asked again, for a rate."""
        if _is_rate(error):
            wish.is_sent = False
            return
        self._waiting.pop(wish, None)
        wish.settle(error)

    def _begin_time_anew(self, pause_s: float) -> None:
        """The server has answered; it is asked again after a pause."""
        when_s = asyncio.get_running_loop().time() + pause_s + self._timeout_s
        for wish in self._waiting:
            if not wish.outcome.done():
                wish.time.reschedule(when_s)


def _is_rate(error: Exception | None) -> bool:
    return isinstance(error, RequestFailed) and error.code == ErrorCode.TOO_MANY_REQUESTS
