"""The HTTP request that opens a connection: which may be upgraded, and what all others are answered (RFC 6455 §4.2).

picows parses the request; what it lets pass and RFC 6455 does not is refused here. No answer echoes any of the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

__all__ = ["check_upgrade", "refuse", "tokens"]

Refusal = WSUpgradeResponseWithListener


def refuse(status: HTTPStatus, body: bytes, headers: Mapping[str, str] | None = None) -> Refusal:
    """An HTTP response that ends the connection; `body` is a constant and never echoes the request."""
    return WSUpgradeResponseWithListener(WSUpgradeResponse.create_error_response(status, body, headers), None)


def tokens(request: WSUpgradeRequest, name: str) -> list[str]:
    """The comma-separated tokens of all headers of a name."""
    return [token.strip() for value in request.headers.getall(name, ()) for token in value.split(",")]


def check_upgrade(request: WSUpgradeRequest, path: bytes) -> Refusal | None:
    """None if the request may be upgraded, else the response that refuses it (RFC 6455 §4.2).

    picows checks the rest later: the key's length, and what `Connection` and `Upgrade` say, which is made to its taste.
    """
    headers = request.headers
    target, _, query = request.path.partition(b"?")
    if query:
        return refuse(HTTPStatus.BAD_REQUEST, b"no query is taken here; credentials belong in the login message")
    if target != path:
        return refuse(HTTPStatus.NOT_FOUND, b"not found")
    if len(headers.getall("host", ())) != 1:
        return refuse(HTTPStatus.BAD_REQUEST, b"exactly one Host header is required")
    if "websocket" not in [token.lower() for token in tokens(request, "upgrade")]:
        return refuse(HTTPStatus.UPGRADE_REQUIRED, b"this is a WebSocket endpoint", {"Upgrade": "websocket"})
    if "upgrade" not in [token.lower() for token in tokens(request, "connection")]:
        return refuse(HTTPStatus.BAD_REQUEST, b"Connection must name Upgrade")
    if headers.getall("sec-websocket-version", ()) != ["13"]:
        return refuse(
            HTTPStatus.UPGRADE_REQUIRED,
            b"WebSocket version 13 is spoken here",
            {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"},
        )
    if len(headers.getall("sec-websocket-key", ())) != 1:
        return refuse(HTTPStatus.BAD_REQUEST, b"exactly one Sec-WebSocket-Key is required")
    headers["Connection"] = "Upgrade"  # picows wants nothing else; Firefox says "keep-alive, Upgrade"
    headers["Upgrade"] = "websocket"
    return None
