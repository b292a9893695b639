"""What every answer of the internal port is made of: JSON, the same headers, and errors of one shape.

Law: no answer repeats any of the request, nor names the versions of what serves it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from orjson import dumps

__all__ = ["answer", "finished", "refusal"]

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "starlight",
}


def answer(content: dict[str, Any], status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=dumps(content), status=status, content_type="application/json")


def refusal(status: int, message: str = "") -> web.Response:
    """An error in the one shape that all have.

    Args:
        status: of HTTP.
        message: constant text, or text of ours; by default what HTTP calls the status.
    """
    if not message:
        message = HTTPStatus(status).phrase.lower()
    response = answer({"error": {"code": status, "message": message}}, status)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        response.headers["Retry-After"] = "1"
    return response


def finished(response: web.StreamResponse) -> web.StreamResponse:
    """An answer as it goes out: an error of aiohttp in our shape, and all with the headers that every answer has."""
    if isinstance(response, web.HTTPException):
        ours = refusal(response.status)
        if "Allow" in response.headers:
            ours.headers["Allow"] = response.headers["Allow"]
        response = ours
    response.headers.update(_HEADERS)
    return response
