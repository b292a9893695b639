"""The HTTP request that opens a connection: which may be upgraded, and what all others are answered (RFC 6455 §4.2).

picows parses the request; what it lets pass and RFC 6455 does not is refused here. No answer echoes any of the request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from starlight.net.refusals import Cause

__all__ = ["HEALTH_PATHS", "Refused", "check_upgrade", "health", "refuse", "tokens"]

HEALTH_PATHS: Final = (b"/healthz", b"/readyz")
"""What load balancers may ask at the port of the clients: whether the node lives, whether to send clients here."""


_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==", re.ASCII)


class Refused(NamedTuple):
    """A request that is not upgraded.

    Attributes:
        cause: why.
        response: what it is answered; it ends the connection.
    """

    cause: Cause
    response: WSUpgradeResponseWithListener


def refuse(cause: Cause, status: HTTPStatus, body: bytes, headers: Mapping[str, str] | None = None) -> Refused:
    """A refusal; `body` is a constant and never echoes the request."""
    response = WSUpgradeResponse.create_error_response(status, body, headers)
    return Refused(cause, WSUpgradeResponseWithListener(response, None))


def health(is_ok: bool) -> WSUpgradeResponseWithListener:
    """The answer of a health route: 200, or 503 where no client should be sent. It ends the connection."""
    headers = {"Cache-Control": "no-store"}
    if is_ok:
        response = WSUpgradeResponse.create_ok_response(b"ok\n", headers)
    else:
        response = WSUpgradeResponse.create_error_response(
            HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n", {**headers, "Retry-After": "1"}
        )
    return WSUpgradeResponseWithListener(response, None)


def tokens(request: WSUpgradeRequest, name: str) -> list[str]:
    """The comma-separated tokens of all headers of a name."""
    return [token.strip() for value in request.headers.getall(name, ()) for token in value.split(",")]


def check_upgrade(request: WSUpgradeRequest, path: bytes) -> Refused | None:
    """None if the request may be upgraded, else why not, with the response (RFC 6455 §4.2).

    What `Connection` and `Upgrade` say is made to the taste of picows, which looks at it later.
    """
    headers = request.headers
    target, _, query = request.path.partition(b"?")
    if query:
        return refuse(
            "query", HTTPStatus.BAD_REQUEST, b"no query is taken here; credentials belong in the login message"
        )
    if target != path:
        return refuse("path", HTTPStatus.NOT_FOUND, b"not found")
    if len(headers.getall("host", ())) != 1:
        return refuse("bad_request", HTTPStatus.BAD_REQUEST, b"exactly one Host header is required")
    if "websocket" not in [token.lower() for token in tokens(request, "upgrade")]:
        return refuse(
            "no_upgrade", HTTPStatus.UPGRADE_REQUIRED, b"this is a WebSocket endpoint", {"Upgrade": "websocket"}
        )
    if "upgrade" not in [token.lower() for token in tokens(request, "connection")]:
        return refuse("no_upgrade", HTTPStatus.BAD_REQUEST, b"Connection must name Upgrade")
    if headers.getall("sec-websocket-version", ()) != ["13"]:
        return refuse(
            "version",
            HTTPStatus.UPGRADE_REQUIRED,
            b"WebSocket version 13 is spoken here",
            {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"},
        )
    keys = headers.getall("sec-websocket-key", ())
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):  # picows would quote a wrong one
        return refuse("bad_request", HTTPStatus.BAD_REQUEST, b"exactly one Sec-WebSocket-Key of 16 bytes is required")
    headers["Connection"] = "Upgrade"  # picows wants nothing else; Firefox says "keep-alive, Upgrade"
    headers["Upgrade"] = "websocket"
    return None
