"""A channel's record: all that the hub keeps of a channel.

Who is a member is kept in the core alone (`members`); `presence` counts the same by user, where it is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlight.channels.presence import Presence

if TYPE_CHECKING:
    from starlight._fanout import Channel
    from starlight.channels.options import ChannelOptions

__all__ = ["ChannelRecord"]


class ChannelRecord:
    """A channel.

    Args:
        name: of the channel.
        members: the core's side of it: its subscribers. Without any so far.
        options: what it does beyond passing publications on.

    Attributes:
        presence: its users; None where neither presence nor announcements are wanted.
        is_held: whether it is kept without members, too.
    """

    __slots__ = ("is_held", "members", "name", "options", "presence")

    def __init__(self, name: str, members: Channel, options: ChannelOptions) -> None:
        self.name = name
        self.members = members
        self.options = options
        self.presence = Presence() if wants_users(options) else None
        self.is_held = False

    @property
    def listed(self) -> Presence | None:
        """Its users, where others may see them."""
        return self.presence if self.options.presence else None

    @property
    def is_needed(self) -> bool:
        """Whether the hub keeps it: it has members, or something else holds it."""
        return len(self.members) > 0 or self.is_held


def wants_users(options: ChannelOptions) -> bool:
    """Whether a channel with these options counts its users."""
    return options.presence or bool(options.announce)
