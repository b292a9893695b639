"""How many channels one message joins, and how soon the next message may follow. Pure: limits in, decisions out."""

from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from orjson import dumps

from starlight.protocols.native.client import Welcome

__all__ = ["JOINS_LIMIT", "Pace"]

JOINS_LIMIT: Final = 256
"""The most channels in one message (protocol.md)."""

JOIN_BYTES: Final = 32 << 10
"""The most bytes of one message: half of what a server takes by default, and 256 ordinary names."""

_ENVELOPE_BYTES: Final = 64
"""What a join is without its channels, and a little more."""

PAUSE_LIMIT_S: Final = 5.0
"""The longest wait between two messages, whatever rate a welcome names."""


class Pace(NamedTuple):
    """What a server allows one client, as its welcome says; None: any.

    Attributes:
        message_rate: messages a second.
        byte_rate: bytes a second.
        message_bytes: of the largest message.
    """

    message_rate: int | None = None
    byte_rate: int | None = None
    message_bytes: int | None = None

    @classmethod
    def of(cls, welcome: Welcome) -> Self:
        """What this welcome says."""
        return cls(*(welcome.limit_of(name) for name in cls._fields))

    def take(self, names: Sequence[str]) -> int:
        """How many of the names, from the first on, fit into one message; at least one."""
        limit_bytes = JOIN_BYTES if self.message_bytes is None else min(JOIN_BYTES, self.message_bytes)
        size_bytes = _ENVELOPE_BYTES
        for count, name in enumerate(names[:JOINS_LIMIT]):
            size_bytes += _size_bytes(name)
            if count and size_bytes > limit_bytes:
                return count
        return min(len(names), JOINS_LIMIT)

    def pause_s(self, names: Sequence[str]) -> float:
        """How long to wait after a message with these names, in seconds."""
        by_messages_s = 1 / self.message_rate if self.message_rate else 0.0
        by_bytes_s = sum(map(_size_bytes, names)) / self.byte_rate if self.byte_rate else 0.0
        return min(max(by_messages_s, by_bytes_s), PAUSE_LIMIT_S)


def _size_bytes(name: str) -> int:
    return len(dumps(name)) + len('{"channel":},')
