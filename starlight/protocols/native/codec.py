"""The native protocol as one codec: JSON, one message a frame (`starlight.v1`) or in lines (`starlight.v1.lines`)."""

from typing import Final

from starlight import close_codes
from starlight.protocols.base import FRAMES, LINES, Ending
from starlight.protocols.native import commands, pushes, replies
from starlight.protocols.native.lines import LINES as V1_LINES
from starlight.protocols.native.lines import V1

__all__ = ["NATIVE", "Native"]

_NO_BYE: Final = frozenset(
    (
        close_codes.PROTOCOL_ERROR,
        close_codes.UNSUPPORTED_DATA,
        close_codes.NOT_UTF8,
        close_codes.ABUSE,
        close_codes.TOO_BIG,
        close_codes.SLOW_CONSUMER,
        close_codes.WRITE_TIMEOUT,
    )
)
"""Ends without a `bye`: the peer does not read, or does not speak the protocol."""


class Native:
    """A `Codec`. Its functions are those of `commands`, `replies` and `pushes`."""

    is_text: Final = True
    framings: Final = {V1: FRAMES, V1_LINES: LINES}
    tail: Final = pushes.TAIL

    decode = staticmethod(commands.decode)
    read_id = staticmethod(commands.read_id)

    welcome = staticmethod(replies.welcome)
    ok = staticmethod(replies.ok)
    ok_id = staticmethod(replies.ok_id)
    ok_publish = staticmethod(replies.ok_publish)
    ok_count = staticmethod(replies.ok_count)
    ok_join = staticmethod(replies.ok_join)
    ok_joins = staticmethod(replies.ok_joins)
    ok_presence = staticmethod(replies.ok_presence)
    ok_data = staticmethod(replies.ok_data)
    error = staticmethod(replies.error)
    pong = staticmethod(replies.pong)

    publication_head = staticmethod(pushes.publication_head)
    broadcast_head = staticmethod(pushes.broadcast_head)
    direct_head = staticmethod(pushes.direct_head)
    server_head = staticmethod(pushes.server_head)
    joined = staticmethod(pushes.joined)
    left = staticmethod(pushes.left)
    expiring = staticmethod(pushes.expiring)

    @staticmethod
    def end(code: int, reason: str | None, retry_ms: int | None) -> Ending:
        """The codes of `close_codes` are this protocol's own. A drain's reason says when to come back."""
        if reason is None:
            reason = close_codes.reason(code)
            if code == close_codes.GOING_AWAY and retry_ms is not None:
                reason = f"{reason};retry={retry_ms}"
        return Ending(code, reason, b"" if code in _NO_BYE else replies.bye(code, reason, retry_ms))


NATIVE: Final = Native()
