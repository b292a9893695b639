"""Who has come and gone, told to the members of a channel with ``announce = "users"``.

Strategy: `joined` is told at once, `left` after the channel's `announce_delay`, unless the user comes back by then. Who
is leaving stays in the channel's presence, so that a list of users and the announcements behind it always fit together.
What is due waits in one wheel for all channels, with one timer, which runs only while somebody is leaving.

The law: a user is leaving at most once in a channel, and no longer than the channel has members.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Final

from starlight.protocols.base import Codecs

if TYPE_CHECKING:
    from starlight._fanout import Core
    from starlight.channels.channel import ChannelRecord

__all__ = ["Announcements"]

TICK_S: Final = 0.1
"""How exact a delay is: a person who looks at a list doesn't notice."""

SLICE: Final = 500
"""Announcements between two turns of the loop: about 2 ms, where many clients went at once."""


class Announcements:
    """The announcements of one hub.

    Args:
        core: the write path.
        codecs: what the node speaks.
        clock: monotonic seconds.
        later: calls a function after so many seconds; by default the running loop does.
    """

    def __init__(
        self,
        core: Core,
        codecs: Codecs,
        clock: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._publish = core.publish
        self._codecs = codecs
        self._clock = clock
        self._later = later or _later
        self._ticks: dict[ChannelRecord, dict[str, int]] = {}  # when who has left, by channel and user; no empty ones
        self._leaving: dict[int, dict[tuple[ChannelRecord, str], None]] = {}  # the same by tick; no empty ones
        self._has_timer = False

    def enter(self, record: ChannelRecord, user: str, *, is_new: bool) -> None:
        """A client joins, who isn't a member so far. is_new: no client of the user is here, and none is leaving."""
        if is_new:
            self._tell_joined(record, user)
        elif user in self._ticks.get(record, ()):
            self._forget(record, user)

    def leave(self, record: ChannelRecord, user: str) -> None:
        """The last client of a user has gone. The user is in the channel's presence until `left` is told."""
        delay_s = record.options.announce_delay
        if not delay_s:
            self._tell_left(record, user)
            return
        tick = math.ceil((self._clock() + delay_s) / TICK_S)
        self._ticks.setdefault(record, {})[user] = tick
        self._leaving.setdefault(tick, {})[record, user] = None
        self._set_timer(TICK_S)

    def drop(self, record: ChannelRecord) -> list[str]:
        """Nobody is told any more who has left a channel. Returns the users who were leaving it."""
        users = list(self._ticks.get(record, ()))
        for user in users:
            self._forget(record, user)
        return users

    def __len__(self) -> int:
        """How many are leaving."""
        return sum(map(len, self._ticks.values()))

    def _forget(self, record: ChannelRecord, user: str) -> None:
        users = self._ticks[record]
        tick = users.pop(user)
        if not users:
            del self._ticks[record]
        leaving = self._leaving[tick]
        del leaving[record, user]
        if not leaving:
            del self._leaving[tick]

    def _tell_joined(self, record: ChannelRecord, user: str) -> None:
        message = self._codecs.of_each(lambda codec: codec.joined(record.name, user))
        self._publish(record.members, message, b"", b"")

    def _tell_left(self, record: ChannelRecord, user: str) -> None:
        assert record.presence is not None
        record.presence.drop(user)
        message = self._codecs.of_each(lambda codec: codec.left(record.name, user))
        self._publish(record.members, message, b"", b"")

    def _set_timer(self, seconds: float) -> None:
        if not self._has_timer:
            self._has_timer = True
            self._later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._has_timer = False
        now = self._clock() / TICK_S
        due = (pair for tick, pairs in self._leaving.items() if tick <= now for pair in pairs)
        some = list(islice(due, SLICE))
        try:
            for record, user in some:
                self._forget(record, user)
                self._tell_left(record, user)
        finally:  # no failure stops it for ever
            if self._leaving:
                self._set_timer(0 if len(some) == SLICE else TICK_S)


def _later(seconds: float, function: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(seconds, function)
