"""A channel's record: what the hub keeps of a channel that has subscribers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlight.channels.presence import Presence

if TYPE_CHECKING:
    from starlight._fanout import Channel

__all__ = ["ChannelRecord"]


class ChannelRecord:
    """A channel that has subscribers: the core's side of it and the users in it."""

    __slots__ = ("announces", "channel", "name", "presence")

    def __init__(self, name: str, channel: Channel, announces: bool) -> None:
        self.name = name
        self.channel = channel
        self.presence = Presence()
        self.announces = announces
