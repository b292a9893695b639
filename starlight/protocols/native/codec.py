"""The native protocol as one codec: JSON, one message a frame (`starlight.v1`) or in lines (`starlight.v1.lines`).

This module is the `Codec`, and not an object with methods: the interpreter finds a module's functions as fast as its
own globals, and these are called for each message.
"""

from typing import Final

from starlight import close_codes
from starlight.protocols.base import FRAMES, LINES, Ending
from starlight.protocols.native.commands import decode, read_id
from starlight.protocols.native.lines import LINES as V1_LINES
from starlight.protocols.native.lines import V1
from starlight.protocols.native.pushes import TAIL as tail
from starlight.protocols.native.pushes import (
    broadcast_head,
    direct_head,
    expiring,
    joined,
    left,
    publication_head,
    server_head,
)
from starlight.protocols.native.replies import (
    bye,
    error,
    ok,
    ok_count,
    ok_data,
    ok_id,
    ok_join,
    ok_joins,
    ok_presence,
    ok_publish,
    pong,
    welcome,
)

__all__ = [
    "broadcast_head",
    "decode",
    "direct_head",
    "end",
    "error",
    "expiring",
    "framings",
    "is_text",
    "joined",
    "left",
    "ok",
    "ok_count",
    "ok_data",
    "ok_id",
    "ok_join",
    "ok_joins",
    "ok_presence",
    "ok_publish",
    "pong",
    "publication_head",
    "read_id",
    "server_head",
    "tail",
    "welcome",
]

is_text: Final = True
framings: Final = {V1: FRAMES, V1_LINES: LINES}

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


def end(code: int, reason: str | None, retry_ms: int | None) -> Ending:
    """The codes of `close_codes` are this protocol's own. A drain's reason says when to come back."""
    if reason is None:
        reason = close_codes.reason(code)
        if code == close_codes.GOING_AWAY and retry_ms is not None:
            reason = f"{reason};retry={retry_ms}"
    return Ending(code, reason, b"" if code in _NO_BYE else bye(code, reason, retry_ms))
