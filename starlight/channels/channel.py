"""A channel's record: what the hub keeps of a channel that has subscribers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlight.channels.presence import Presence

if TYPE_CHECKING:
    from starlight._fanout import Channel
    from starlight.errors import RequestError

__all__ = ["ChannelRecord"]


class ChannelRecord:
    """A channel that has subscribers, or is about to: the core's side of it and the users in it.

    Attributes:
        joining: clients that join it as soon as all their channels are followed.
        opening: those to call with None when the broker follows it, or with why it refuses; None once it has answered.
    """

    __slots__ = ("announces", "channel", "joining", "name", "opening", "presence")

    def __init__(self, name: str, channel: Channel, announces: bool) -> None:
        self.name = name
        self.channel = channel
        self.presence = Presence()
        self.announces = announces
        self.joining = 0
        self.opening: list[Callable[[RequestError | None], None]] | None = None
