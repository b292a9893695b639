"""What the server sends unasked. A push that carries `data` is ``head + data + TAIL``.

The payload is spliced through as the sender wrote it, so a push is built by joining bytes and never by encoding JSON:
the heads end in ``"data":`` and the core appends head, data and tail to its arena in one go. Fields stand in the order
of the protocol's tables. A ``from`` of None means the application itself and is ``null`` on the wire.
"""

from typing import Final

from orjson import dumps

__all__ = ["TAIL", "broadcast_head", "direct_head", "expiring", "joined", "left", "publication_head", "server_head"]

TAIL: Final = b"}"
"""What closes every push after its data."""

_SERVER_HEAD: Final = b'{"type":"server","data":'


def direct_head(from_user: str | None) -> bytes:
    """``{"type":"direct","from":…,"data":``"""
    return b'{"type":"direct","from":%b,"data":' % dumps(from_user)


def publication_head(channel: str, from_user: str | None) -> bytes:
    """``{"type":"publication","channel":…,"from":…,"data":``; no offset: the channel has no history."""
    return b'{"type":"publication","channel":%b,"from":%b,"data":' % (dumps(channel), dumps(from_user))


def broadcast_head(from_user: str | None) -> bytes:
    """``{"type":"broadcast","from":…,"data":``"""
    return b'{"type":"broadcast","from":%b,"data":' % dumps(from_user)


def server_head() -> bytes:
    """``{"type":"server","data":``: pushed by the application."""
    return _SERVER_HEAD


def joined(channel: str, user: str) -> bytes:
    """The whole message: a user joined a channel that announces its users."""
    return b'{"type":"joined","channel":%b,"user":%b}' % (dumps(channel), dumps(user))


def left(channel: str, user: str) -> bytes:
    """The whole message: a user left a channel that announces its users."""
    return b'{"type":"left","channel":%b,"user":%b}' % (dumps(channel), dumps(user))


def expiring(seconds: int) -> bytes:
    """The whole message: the login ends in so many seconds unless a `refresh` brings a new token."""
    return b'{"type":"expiring","seconds":%d}' % seconds
