"""One WebSocket connection of the client: picows below, whole messages above.

A link is opened once and ends once: `closed` then has the close code and reason. It never reconnects; that is the
client's part. It answers the server's pings, and once it is watched it ends when nothing has come for too long, without
waiting for what the kernel or the server say about it.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NamedTuple

from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSInvalidStatusError,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
)
from picows.url import WSInvalidURL

from starlight import close_codes
from starlight.client.keepalive import PONG_TIMEOUT_S, Keepalive
from starlight.errors import ConnectFailed
from starlight.protocols.fragments import Fragments
from starlight.protocols.native import lines
from starlight.protocols.native._lines import Lines
from starlight.protocols.native.client import Welcome

__all__ = ["Closed", "Link"]

_TCP_INFO_RECEIVED: Final = slice(52, 56)
"""``tcpi_last_data_recv`` of Linux's ``struct tcp_info``: milliseconds since the last data came."""

FRAGMENTS_LIMIT: Final = 65_536
"""Frames of one message: those of 1 MiB cut into 16 bytes. A server that sends more plays with us (1008)."""

log = logging.getLogger("starlight.client.connect")


class Closed(NamedTuple):
    """How a link ended: the close code (1006 when there was no close frame) and the reason."""

    code: int
    reason: str


class Link(WSListener):
    """See the module. Created by `open`.

    Args:
        on_message: called with each whole message, in order; must not raise.
        on_writable: called with False when the kernel takes no more and with True when it does again.
        on_closed: called once an open link has ended, at once, before anything else can be sent on it.
        max_message_bytes: a longer message ends the link with 1009.
    """

    def __init__(
        self,
        on_message: Callable[[bytes], None],
        on_writable: Callable[[bool], None],
        on_closed: Callable[["Link", Closed], None],
        max_message_bytes: int,
    ) -> None:
        self.closed: asyncio.Future[Closed] = asyncio.get_running_loop().create_future()
        self.is_lines = False
        self._on_message = on_message
        self._on_writable = on_writable
        self._on_closed = on_closed
        self._max_message_bytes = max_message_bytes
        self._fragments: Fragments | None = None
        self.welcome: Welcome | None = None
        """What the server answered the login with; set by the client."""
        self._transport: WSTransport | None = None
        self._parting: asyncio.Task[None] | None = None  # held, so that it isn't collected before its end
        self._is_writable = True
        self._heard_s = 0.0
        self._watch: Keepalive | None = None
        self._next_look: asyncio.TimerHandle | None = None

    async def open(self, url: str, subprotocol: str, tls: ssl.SSLContext | None) -> None:
        """Connect and shake hands; the caller bounds the time.

        Raises:
            ConnectFailed: no connection, or no WebSocket server that speaks `subprotocol`.
        """
        try:
            _, listener = await ws_connect(
                lambda: self,
                url,
                ssl_context=tls,
                websocket_handshake_timeout=None,
                enable_auto_pong=False,  # ours, so that each frame is a sign of life
                enable_auto_ping=False,
                max_frame_size=self._max_message_bytes,
                use_aiofastnet=not url.startswith("wss:"),  # its TLS logs a traceback for a server that goes at once
                max_redirects=0,  # as in a browser: a redirect would hand the token to another host
                extra_headers={"Sec-WebSocket-Protocol": subprotocol},
            )
        except WSInvalidURL as error:
            raise ConnectFailed(f"{url}: not a WebSocket URL, expected such as ws://127.0.0.1:8765/ws") from error
        except (OSError, WSError) as error:
            raise ConnectFailed(f"{url}: {_why(error)}") from error
        if listener is None or self._transport is None:
            raise ConnectFailed(f"{url}: closed by the server during the handshake")
        agreed = self._transport.response.headers.get("Sec-WebSocket-Protocol", lines.V1)
        if agreed not in (subprotocol, lines.V1):
            self.abort()
            raise ConnectFailed(f"{url}: the server answered with another subprotocol than {subprotocol}")
        self.is_lines = agreed == lines.LINES

    def watch(self, ping_s: float, pong_s: float, keepalive_s: float) -> None:
        """From now on, end with 1006 when nothing comes for too long; see `Keepalive`."""
        self._heard_s = asyncio.get_running_loop().time()
        self._watch = Keepalive(ping_s, pong_s, keepalive_s, self._heard_s)
        self._look_later(self._watch)

    def send(self, message: bytes) -> None:
        """Send one message as one text frame. Ignored once the link is closing."""
        if self._transport is not None:
            self._transport.send(WSMsgType.TEXT, message)

    async def close(self, timeout_s: float) -> None:
        """Close handshake with 1000; without an answer in time the connection is cut."""
        if self._transport is not None and not self.closed.done():
            self._transport.send_close(WSCloseCode.OK)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.closed), timeout_s)
        self.abort()

    def abort(self) -> None:
        """Cut the connection, if there still is one."""
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    # What picows calls.

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self._parting = asyncio.create_task(_part(transport))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if self.closed.done():
            return  # nothing counts after the close
        self._heard_s = asyncio.get_running_loop().time()
        kind = frame.msg_type
        if kind == WSMsgType.TEXT or kind == WSMsgType.CONTINUATION:
            self._receive_text(frame, is_first=kind == WSMsgType.TEXT)
        elif kind == WSMsgType.CLOSE:
            self._receive_close(transport, frame.get_payload_as_bytes())
        elif kind == WSMsgType.PING:
            if self._is_writable:  # a server that pings and reads nothing would fill our memory with pongs
                transport.send_pong(frame.get_payload_as_bytes())
        elif kind == WSMsgType.BINARY:
            self._fail(WSCloseCode.UNSUPPORTED_DATA)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._finish(Closed(close_codes.ABNORMAL, close_codes.reason(close_codes.ABNORMAL)))

    def pause_writing(self) -> None:
        self._is_writable = False
        self._on_writable(False)

    def resume_writing(self) -> None:
        self._is_writable = True
        self._on_writable(True)

    # The rest is private.

    def _look_later(self, watch: Keepalive) -> None:
        loop = asyncio.get_running_loop()
        self._next_look = loop.call_later(max(0.0, watch.next_s - loop.time()), self._look, watch)

    def _look(self, watch: Keepalive) -> None:
        if self._transport is None or self.closed.done():
            return None
        now_s = asyncio.get_running_loop().time()
        if now_s - self._heard_s >= watch.ask_s:
            self._heard_s = max(self._heard_s, now_s - _silent_s(self._transport))  # a large message is under way
        decision = watch.look(now_s, self._heard_s)
        if decision == "drop":
            log.info("nothing came from the server for %.1f s: the connection is given up", watch.silence_s)
            self._finish(Closed(close_codes.ABNORMAL, close_codes.reason(close_codes.ABNORMAL)))
            return self.abort()
        if decision == "ask":
            self._transport.send_ping()
        return self._look_later(watch)

    def _receive_text(self, frame: WSFrame, is_first: bool) -> None:
        if is_first == (self._fragments is not None):
            return self._fail(WSCloseCode.PROTOCOL_ERROR)  # RFC 6455 section 5.4
        if frame.fin and is_first:
            return self._deliver(frame.get_payload_as_bytes())
        fragments = self._fragments = self._fragments or Fragments(True)
        code = fragments.take(frame.get_payload_as_bytes(), frame.fin, FRAGMENTS_LIMIT, self._max_message_bytes)
        if code:
            return self._fail(WSCloseCode(code))
        if frame.fin:
            self._fragments = None
            self._deliver(bytes(fragments.data))
        return None

    def _deliver(self, whole: bytes) -> None:
        if self.is_lines:
            for message in Lines(whole):
                self._on_message(message)
        else:
            self._on_message(whole)

    def _receive_close(self, transport: WSTransport, payload: bytes) -> None:
        code = int.from_bytes(payload[:2]) if len(payload) >= 2 else close_codes.NO_STATUS
        transport.send_close(WSCloseCode.OK)  # ignored if theirs is the answer to ours
        self._disconnect_soon(transport)
        self._finish(Closed(code, payload[2:].decode("utf-8", "replace")))

    def _fail(self, code: WSCloseCode) -> None:
        log.warning("the server broke the protocol: closing with %d", code.value)
        if self._transport is not None:
            self._transport.send_close(code)
            self._disconnect_soon(self._transport)
        self._finish(Closed(code.value, close_codes.reason(code.value)))

    def _disconnect_soon(self, transport: WSTransport) -> None:
        """Once our close frame is written; or by force, should the server not take it."""
        transport.disconnect()
        asyncio.get_running_loop().call_later(PONG_TIMEOUT_S, self.abort)

    def _finish(self, closed: Closed) -> None:
        """Nothing is delivered or can be sent from here on; told once, and to the owner before anyone who awaits."""
        if not self.closed.done():
            if self._next_look is not None:
                self._next_look.cancel()
            self.closed.set_result(closed)
            self._on_closed(self, closed)


async def _part(transport: WSTransport) -> None:
    """Take note of what picows found wrong with the server's frames; it has logged it, and the link ends with 1006."""
    with contextlib.suppress(WSError, OSError):
        await transport.wait_disconnected()


def _silent_s(transport: WSTransport) -> float:
    """How long no data came, as the kernel knows it; infinite where it doesn't tell."""
    try:
        info = transport.underlying_transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, 104
        )
    except (AttributeError, OSError, ValueError):
        return float("inf")
    return int.from_bytes(info[_TCP_INFO_RECEIVED], sys.byteorder) / 1000


def _why(error: Exception) -> str:
    """One line for a person at a terminal."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(error, WSInvalidStatusError) and error.response is not None:
        return _refusal(error.response.status, error.raw_body or b"")
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "no TLS is spoken there: ws:// rather than wss://?"
    if isinstance(error, OSError):
        return error.strerror or str(error) or "closed by the server during the handshake"
    return str(error)


def _refusal(status: int, body: bytes) -> str:
    """What a server answered instead of a WebSocket, with its words if they are one short line."""
    if status == HTTPStatus.NOT_FOUND:
        return "the server has no WebSocket at this path (404); Starlight's is /ws unless --path says otherwise"
    words = body.decode("utf-8", "replace").strip()
    return f"the server answered {status:d}" + (f": {words}" if words.isprintable() and 0 < len(words) < 100 else "")
