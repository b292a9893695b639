"""What is counted of a node's connections."""

from __future__ import annotations

from starlight.close_codes import CLOSE_CODES
from starlight.counts import CodeCounts

__all__ = ["ConnectionCounts"]


class ConnectionCounts:
    """Totals of one node's connections since its start.

    Attributes:
        accepted: WebSocket handshakes completed.
        refused_full: sockets refused as there were `max_connections`.
        refused_address: sockets refused for a limit of their address.
        handshakes_failed: connections that ended before their handshake was complete.
        logins: connections that were welcomed.
        closed: closes by the node, by code, evictions included; after the login.
        refused: closes by the node, by code; before the login.
        left: ends by the client, by the code of its close frame; 1006 where none came.
        unsolicited_pongs: pongs that no ping had asked for.
        handlers_cancelled: handlers that went on without their client and were cancelled, as there were too many.
    """

    __slots__ = (
        "accepted",
        "closed",
        "handlers_cancelled",
        "handshakes_failed",
        "left",
        "logins",
        "refused",
        "refused_address",
        "refused_full",
        "unsolicited_pongs",
    )

    def __init__(self) -> None:
        self.accepted = 0
        self.refused_full = 0
        self.refused_address = 0
        self.handshakes_failed = 0
        self.logins = 0
        self.closed = CodeCounts(CLOSE_CODES)
        self.refused = CodeCounts(CLOSE_CODES)
        self.left = CodeCounts(CLOSE_CODES)
        self.unsolicited_pongs = 0
        self.handlers_cancelled = 0
