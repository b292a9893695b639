"""The two subprotocols, and which of them a connection speaks.

``starlight.v1`` has one JSON message per text frame. ``starlight.v1.lines`` may carry several, separated by ``\\n``. No
JSON text needs a raw newline, so cutting them apart (`_lines`) is exact, and it leaves every piece valid UTF-8. The
other direction, joining messages into a frame, is the core's: it replaces newlines inside spliced data by spaces.
"""

from collections.abc import Iterable
from typing import Final

__all__ = ["LINES", "SUBPROTOCOLS", "V1", "select_subprotocol"]

V1: Final = "starlight.v1"
LINES: Final = "starlight.v1.lines"
SUBPROTOCOLS: Final = (V1, LINES)
"""What the server speaks."""


def select_subprotocol(offers: Iterable[str]) -> str | None:
    """The subprotocol for the offers of ``Sec-WebSocket-Protocol`` in the client's order, one token each.

    The client's first offer that we speak wins. No offer at all means ``starlight.v1``; the response must then carry
    no ``Sec-WebSocket-Protocol`` (RFC 6455 section 4.1: a client fails on one that it did not ask for). None means
    that there were offers and none is ours: answer 400. Tokens are compared exactly, as case matters in them; the
    result is always one of our constants, so nothing of the request is ever reflected.
    """
    none_offered = True
    for offer in offers:
        none_offered = False
        for known in SUBPROTOCOLS:
            if offer == known:
                return known
    return V1 if none_offered else None
