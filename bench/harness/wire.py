"""A raw, blocking WebSocket client: what scripts do to a node they do with their own bytes and at their own pace."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN = 0x80
NO_CLOSE_FRAME = 1006


def frame(opcode: int, payload: bytes = b"", *, first: int = FIN) -> bytes:
    """A client's frame, its mask all zeros; ``first``: FIN, or 0 for a piece of a message."""
    size = len(payload)
    short = size if size < 126 else 126 if size < 65_536 else 127
    length = b"" if short < 126 else size.to_bytes(2 if short == 126 else 8, "big")
    return bytes((first | opcode, 0x80 | short)) + length + bytes(4) + payload


def upgrade_request(port: int, subprotocol: str = "starlight.v1") -> bytes:
    """The request of a handshake."""
    lines = [
        "GET /ws HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        f"Sec-WebSocket-Protocol: {subprotocol}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


class Ended(Exception):
    """The server closed the connection; `code` is that of its close frame, 1006 without one."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


class Bucket:
    """A token bucket: `wait` takes tokens, and sleeps while there are none.

    Args:
        bytes_per_s: how fast it fills.
        burst_bytes: how much it holds.
    """

    def __init__(self, bytes_per_s: float, burst_bytes: int = 32 * 1024) -> None:
        self.bytes_per_s, self.burst_bytes = bytes_per_s, burst_bytes
        self._level, self._at_s = float(burst_bytes), time.monotonic()

    def wait(self, n: int) -> None:
        """Take so many; debts are slept off."""
        now_s = time.monotonic()
        filled = self._level + (now_s - self._at_s) * self.bytes_per_s
        self._level, self._at_s = min(float(self.burst_bytes), filled) - n, now_s
        if self._level < 0:
            time.sleep(-self._level / self.bytes_per_s)


class Wire:
    """One connection, upgraded but not logged in.

    Args:
        address: of the node.
        subprotocol: asked for.
        receive_buffer_bytes: SO_RCVBUF; 0 for the kernel's choice.
        tls: for wss.
        pace: called with the number of bytes after each read; it may sleep.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        subprotocol: str = "starlight.v1",
        receive_buffer_bytes: int = 0,
        tls: ssl.SSLContext | None = None,
        pace: Callable[[int], None] | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self.sock = socket.socket()
        if receive_buffer_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.settimeout(timeout_s)
        self.sock.connect(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        self.pace = pace
        self.unread = bytearray()
        self.received_bytes = 0
        self.answers_pings = True
        self.sock.sendall(upgrade_request(address[1], subprotocol))
        while b"\r\n\r\n" not in self.unread:
            self._receive()
        head, _, rest = bytes(self.unread).partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise SystemExit(f"the node refused a handshake: {head.decode(errors='replace')}")
        self.unread = bytearray(rest)

    def _receive(self) -> None:
        try:
            some = self.sock.recv(16 * 1024)
        except ConnectionResetError:
            some = b""
        if not some:
            raise Ended(NO_CLOSE_FRAME)
        self.unread += some
        self.received_bytes += len(some)
        if self.pace is not None:
            self.pace(len(some))

    def _take(self, n: int) -> bytes:
        while len(self.unread) < n:
            self._receive()
        taken = bytes(self.unread[:n])
        del self.unread[:n]
        return taken

    def read_frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame that is no ping; raises `Ended` for a close frame or the end."""
        while True:
            head = self._take(2)
            size = head[1] & 0x7F
            if size > 125:
                size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
            opcode, payload = head[0] & 15, self._take(size)
            if opcode == CLOSE:
                raise Ended(int.from_bytes(payload[:2], "big") if payload else 1005)
            if opcode != PING:
                return opcode, payload
            if self.answers_pings:
                self.sock.sendall(frame(PONG, payload))

    def send(self, **fields: Any) -> None:
        """One message."""
        self.sock.sendall(frame(TEXT, json.dumps(fields).encode()))

    def ask(self, **fields: Any) -> dict[str, Any]:
        """Send a message, and wait for its reply (or the welcome); whatever else comes is passed over."""
        self.send(**fields)
        while True:
            opcode, payload = self.read_frame()
            reply = json.loads(payload) if opcode == TEXT else {}
            if reply.get("id") == fields["id"] or reply.get("type") == "welcome":
                if reply["type"] == "error":
                    raise SystemExit(f"the node refused {fields}: {reply}")
                found: dict[str, Any] = reply
                return found

    def close(self) -> None:
        """End it without a word."""
        self.sock.close()
