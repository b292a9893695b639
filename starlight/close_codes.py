"""Every code that ends a connection and every code of an error reply, each in one table.

A client decides what to do next from the close code alone, so the policy stands beside the code: reconnect after a
backoff, reconnect, or never. Reasons are constants: no byte of input is ever echoed in a close frame.

Sources: RFC 6455 sections 7.4.1 and 7.4.2, the IANA registry of WebSocket close codes, ``docs/protocol.md``.
"""

from enum import IntEnum
from typing import Final, Literal, NamedTuple

__all__ = [
    "CLOSE_CODES",
    "REASON_LIMIT_BYTES",
    "CloseCode",
    "ErrorCode",
    "Policy",
    "check_close",
    "error_name",
    "reason",
    "reconnect_policy",
    "valid_on_wire",
]

Policy = Literal["backoff", "reconnect", "never"]
"""What a client does after a close: ``backoff``: reconnect, later each time; ``reconnect``: soon (with jitter)."""

REASON_LIMIT_BYTES: Final = 123
"""A control frame carries at most 125 bytes, two of which are the code (RFC 6455 section 5.5)."""


class CloseCode(NamedTuple):
    """One row of the table: the code, its constant name, the reason sent with it, and what the client does next."""

    code: int
    name: str
    reason: str
    policy: Policy


CLOSE_CODES: Final[dict[int, CloseCode]] = {
    row.code: row
    for row in (
        CloseCode(1000, "NORMAL", "", "never"),
        CloseCode(1001, "GOING_AWAY", "drain", "backoff"),
        CloseCode(1002, "PROTOCOL_ERROR", "protocol error", "never"),
        CloseCode(1003, "UNSUPPORTED_DATA", "binary message on a text protocol", "never"),
        CloseCode(1005, "NO_STATUS", "", "reconnect"),  # never on the wire: the peer's close frame was empty
        CloseCode(1006, "ABNORMAL", "connection lost", "backoff"),  # never on the wire: there was no close frame
        CloseCode(1007, "NOT_UTF8", "text is not UTF-8", "never"),
        CloseCode(1008, "ABUSE", "abuse", "never"),
        CloseCode(1009, "TOO_BIG", "message too big", "never"),
        CloseCode(1011, "INTERNAL", "internal error", "backoff"),
        CloseCode(1012, "RESTART", "restart", "backoff"),
        CloseCode(1013, "OVERLOADED", "overloaded", "backoff"),
        CloseCode(1015, "TLS_FAILED", "TLS handshake failed", "backoff"),  # never on the wire
        CloseCode(4008, "SLOW_CONSUMER", "slow consumer", "reconnect"),
        CloseCode(4009, "WRITE_TIMEOUT", "write timeout", "reconnect"),
        CloseCode(4010, "INSUFFICIENT_STATE", "insufficient state", "reconnect"),
        CloseCode(4011, "RECONNECT", "asked to reconnect", "reconnect"),
        CloseCode(4012, "NO_PONG", "no pong", "reconnect"),
        CloseCode(4013, "TOO_MANY_REQUESTS", "too many requests", "reconnect"),
        CloseCode(4014, "SESSION_EXPIRED", "session expired", "reconnect"),
        CloseCode(4015, "LOGIN_TIMEOUT", "login timeout", "backoff"),
        CloseCode(4016, "CONNECTION_LIMIT", "connection limit", "backoff"),
        CloseCode(4500, "INVALID_TOKEN", "invalid token", "never"),
        CloseCode(4501, "BAD_REQUEST", "bad request", "never"),
        CloseCode(4503, "DISCONNECTED", "disconnected by the operator", "never"),
        CloseCode(4505, "CHANNEL_LIMIT", "channel limit", "never"),
        CloseCode(4507, "PERMISSION", "permission denied", "never"),
        CloseCode(4509, "TOO_MANY_ERRORS", "too many errors", "never"),
    )
}
"""Every close code Starlight sends or sees, by code."""

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
UNSUPPORTED_DATA: Final = 1003
NO_STATUS: Final = 1005
ABNORMAL: Final = 1006
NOT_UTF8: Final = 1007
ABUSE: Final = 1008
TOO_BIG: Final = 1009
INTERNAL: Final = 1011
RESTART: Final = 1012
OVERLOADED: Final = 1013
TLS_FAILED: Final = 1015
SLOW_CONSUMER: Final = 4008
WRITE_TIMEOUT: Final = 4009
INSUFFICIENT_STATE: Final = 4010
RECONNECT: Final = 4011
NO_PONG: Final = 4012
TOO_MANY_REQUESTS: Final = 4013
SESSION_EXPIRED: Final = 4014
LOGIN_TIMEOUT: Final = 4015
CONNECTION_LIMIT: Final = 4016
INVALID_TOKEN: Final = 4500
BAD_REQUEST: Final = 4501
DISCONNECTED: Final = 4503
CHANNEL_LIMIT: Final = 4505
PERMISSION: Final = 4507
TOO_MANY_ERRORS: Final = 4509


class ErrorCode(IntEnum):
    """The codes of error replies. The connection stays open; the wire name is the member's name in lower case."""

    INTERNAL = 100
    UNAUTHORIZED = 101
    UNKNOWN_CHANNEL = 102
    PERMISSION_DENIED = 103
    UNKNOWN_TYPE = 104
    ALREADY_JOINED = 105
    LIMIT_EXCEEDED = 106
    BAD_REQUEST = 107
    NOT_AVAILABLE = 108
    TOKEN_EXPIRED = 109
    TOO_MANY_REQUESTS = 111
    UNRECOVERABLE_POSITION = 112
    NOT_CONNECTED = 120


_ERROR_NAMES: Final[dict[int, str]] = {member.value: member.name.lower() for member in ErrorCode}


def error_name(code: int) -> str:
    """The wire name of an error code, such as ``bad_request``; ``error`` for a code of a newer server."""
    return _ERROR_NAMES.get(code, "error")


def reason(code: int) -> str:
    """The constant ASCII reason sent with a close code; the empty string for a code that is not in the table."""
    row = CLOSE_CODES.get(code)
    return row.reason if row else ""


def check_close(code: object, close_reason: object) -> None:
    """Check what a server is about to put in a close frame.

    A server may send every registered code that isn't the client's or a gateway's (1000-1003, 1007-1009, 1011-1013),
    and those of libraries and applications (3000-4999): RFC 6455 sections 7.4.1 and 7.4.2. A reason is printable ASCII,
    so that it can't be cut within a character and does nothing to a terminal.

    Args:
        code: the close code.
        close_reason: text, or None for the code's own.

    Raises TypeError for a code that is no int or a reason that is no str, ValueError for others that may not be sent.
    """
    if not isinstance(code, int) or isinstance(code, bool):
        raise TypeError(f"close code: expected an int, got {type(code).__name__}")
    if not (valid_on_wire(code) and code not in _NOT_OURS):
        raise ValueError(f"close code {code}: expected 1000-1003, 1007-1009, 1011-1013 or 3000-4999")
    if close_reason is None:
        return
    if not isinstance(close_reason, str):
        raise TypeError(f"close reason: expected a str, got {type(close_reason).__name__}")
    if not (close_reason.isascii() and close_reason.isprintable()) or len(close_reason) > REASON_LIMIT_BYTES:
        raise ValueError(f"close reason: expected at most {REASON_LIMIT_BYTES} characters of printable ASCII")


_NOT_OURS: Final = frozenset((1010, 1014))
"""1010 is a client's that misses an extension, 1014 a gateway's."""


def reconnect_policy(code: int) -> Policy:
    """What a client does after a close with this code, known or not.

    Codes outside the table follow their range, so that an old client does the right thing with a code of a newer
    server: 4000-4499 reconnect, 4500-4999 never. Any other is an end nobody planned: ``backoff``.
    """
    row = CLOSE_CODES.get(code)
    if row:
        return row.policy
    if 4000 <= code <= 4499:
        return "reconnect"
    if 4500 <= code <= 4999:
        return "never"
    return "backoff"


def valid_on_wire(code: int) -> bool:
    """Whether a peer may put this code in a close frame; any other is answered with 1002 (RFC 6455 section 7.4).

    1000-2999 belong to the protocol, and only those registered so far are taken: 1004 is reserved, 1005, 1006 and 1015
    are for APIs only, and Autobahn's cases 7.9 want the unassigned ones refused. 3000-3999 are registered by libraries,
    4000-4999 are for applications.
    """
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
