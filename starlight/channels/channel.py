"""A channel's record: all that the hub keeps of a channel.

Who is a member is kept in the core alone (`members`); `presence` counts the same by user, where it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from starlight.channels.presence import Presence

if TYPE_CHECKING:
    from starlight._fanout import Channel
    from starlight.channels.options import ChannelOptions
    from starlight.errors import RequestError

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
        clients: members of which the hub was not told yet that they are none: the core drops an evicted one before.
        joining: clients that join it as soon as all their channels are followed.
        opening: those to call with None when the broker follows it, or with why it refuses; None once it has answered.
    """

    __slots__ = ("clients", "is_held", "joining", "members", "name", "opening", "options", "presence")

    def __init__(self, name: str, members: Channel, options: ChannelOptions) -> None:
        self.name = name
        self.members = members
        self.options = options
        self.presence = Presence() if wants_users(options) else None
        self.is_held = False
        self.clients = 0
        self.joining = 0
        self.opening: list[Callable[[RequestError | None], None]] | None = None

    @property
    def listed(self) -> Presence | None:
        """Its users, where others may see them."""
        return self.presence if self.options.presence else None

    @property
    def is_needed(self) -> bool:
        """Whether the hub keeps it: it has members, or is about to, or something else holds it."""
        return self.clients > 0 or self.joining > 0 or self.is_held


def wants_users(options: ChannelOptions) -> bool:
    """Whether a channel with these options counts its users."""
    return options.presence or bool(options.announce)
