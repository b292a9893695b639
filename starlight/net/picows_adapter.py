"""What stands between picows and a connection's transport, so that picows parses and does nothing else.

In the handshake picows has `Answering` for a transport; from then on `DISARMED`, and the core writes. Its logger is a
`ParserLog`, which hears of errors first. A connection that closes is read by `Discard`, no longer by picows.
How reading goes on after a pause, and two socket options, are here as well.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from starlight import close_codes

__all__ = [
    "DISARMED",
    "Answering",
    "Discard",
    "ParserLog",
    "reset_on_close",
    "resume_reading",
    "resume_reading_now",
    "set_send_buffer",
]

BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
"""For what picows can't parse."""

TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
"""For a head of more than 16 KiB or 128 lines, picows' limits."""

DISCARD_BYTES: Final = 64 * 1024
"""What is read of a closing connection before the next pause."""

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""struct linger: close(2) drops what the kernel holds, and resets."""


class AdaptedConnection(Protocol):
    """What a connection is told of here."""

    def on_refused(self) -> None: ...
    def on_bad_request(self, is_too_large: bool) -> None: ...
    def on_parser_error(self, code: int) -> None: ...
    def on_eof(self) -> bool: ...
    def on_discarded(self) -> None: ...
    def resume_writing(self) -> None: ...


class Answering:
    """What picows takes for the transport during the handshake: a refusal echoes nothing, and arrives."""

    __slots__ = ("connection", "is_answered", "is_head", "is_ours", "transport")

    def __init__(self, connection: AdaptedConnection, transport: asyncio.Transport) -> None:
        self.connection = connection
        self.transport = transport
        self.is_answered = False
        self.is_ours = False  # the answer; picows' own refusals quote the request
        self.is_head = False  # the request: its answer has no body

    def write(self, data: bytes | bytearray) -> None:
        """The response."""
        if not self.is_ours:
            is_too_large = b"contains more than" in data
            self.connection.on_bad_request(is_too_large)
            data = TOO_LARGE if is_too_large else BAD_REQUEST
        if self.is_head:
            data = data[: data.index(b"\r\n\r\n") + 4]
        self.is_answered = True
        self.transport.write(bytes(data))

    def close(self) -> None:
        """The request was refused; without an answer so far if it was too large to be parsed."""
        if not self.is_answered:
            self.connection.on_bad_request(True)
            self.transport.write(TOO_LARGE)
        self.connection.on_refused()

    abort = close


class Disarmed:
    """What picows takes for the transport once the handshake is done: it can neither close nor abort it."""

    __slots__ = ()

    def close(self) -> None:
        """Ignored: the connection closes."""

    def abort(self) -> None:
        """Ignored: the connection closes."""


DISARMED: Final = Disarmed()


class ParserLog:
    """What picows takes for its logger. It tells of an error there before it acts on it; nothing else is wanted."""

    __slots__ = ("connection",)

    def __init__(self, connection: AdaptedConnection) -> None:
        self.connection = connection

    def isEnabledFor(self, level: int) -> bool:
        """No, whatever it is."""
        return False

    def error(self, message: str, *args: object) -> None:
        """The parser found an error: the first argument is (close code, text)."""
        code = args[0][0] if args and isinstance(args[0], tuple) and args[0] else close_codes.PROTOCOL_ERROR
        self.connection.on_parser_error(int(code))

    def exception(self, message: str, *args: object) -> None:
        """The parser broke, which counts as the peer's error."""
        self.connection.on_parser_error(close_codes.PROTOCOL_ERROR)

    def ignore(self, *args: object) -> None:
        """Everything else."""

    debug = info = warning = log = ignore


class Discard(asyncio.BufferedProtocol):
    """What reads a closing connection: picows' parser would keep, and grow its buffer for, what is behind an error."""

    __slots__ = ("connection", "discarded_bytes", "protocol")
    buffer = bytearray(DISCARD_BYTES)  # shared by all: nobody looks at what is in it

    def __init__(self, connection: AdaptedConnection, protocol: asyncio.BaseProtocol) -> None:
        self.connection = connection
        self.protocol = protocol
        self.discarded_bytes = 0

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where to put what nobody reads."""
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Ignored; a flood is paused again and again."""
        self.discarded_bytes += nbytes
        if self.discarded_bytes >= DISCARD_BYTES:
            self.discarded_bytes = 0
            self.connection.on_discarded()

    def eof_received(self) -> bool:
        """Whether to keep the transport open nevertheless."""
        return self.connection.on_eof()

    def resume_writing(self) -> None:
        """As before."""
        self.connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """As before."""
        self.protocol.connection_lost(exc)


def resume_reading(transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
    """Read on, if reading was paused.

    With TLS that comes a moment later, as this may be called while a read is being handled.

    Args:
        transport: TCP's or TLS's.
        may_read: whether that is still wanted.
    """
    if transport.is_reading():
        return
    if hasattr(transport, "_do_read"):
        asyncio.get_running_loop().call_soon(_resume_if, transport, may_read)
    else:
        transport.resume_reading()


def _resume_if(transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
    if may_read():
        resume_reading_now(transport)


def resume_reading_now(transport: Any) -> None:
    """As `resume_reading`, at once; never while a read is being handled.

    aiofastnet 1.2.0 would ask the socket only. What its TLS engine had taken from there already would wait for more of
    the peer's bytes, and a peer that waits for an answer sends none; and there would be no room for more of them.
    """
    if transport.is_closing() or transport.is_reading():
        return
    transport.resume_reading()
    if not hasattr(transport, "_do_read"):
        return
    try:
        transport._do_read()
    except Exception as error:
        transport.abort()
        if not isinstance(error, OSError):  # which TLS errors are; of all others the loop tells
            raise


def set_send_buffer(transport: asyncio.BaseTransport, size_bytes: int) -> None:
    """Set SO_SNDBUF of a TCP socket; 0 leaves it to the kernel."""
    sock = transport.get_extra_info("socket")
    if size_bytes and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size_bytes)


def reset_on_close(transport: asyncio.BaseTransport) -> None:
    """Make the close to come a reset; nothing happens if it has come."""
    with suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
