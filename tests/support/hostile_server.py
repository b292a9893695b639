"""A raw WebSocket server that says whatever a test wants: for clients that have to stand it.

It runs in a thread of the test. Each connection is shaken hands with, its login answered with a welcome, its joins with
an `ok`; what else it gets is up to the script. Nothing here checks anything, and nothing is sent that wasn't asked for.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
IDLE_LIMIT_S = 20.0
"""A connection that is silent for so long has been forgotten by its test."""
WELCOME = {"client": "c", "node": "n", "session": None, "expires": None, "ping": 25, "pong": 10}


def frame(opcode: int, payload: bytes = b"", first: int = 0x80, mask: bool = False) -> bytes:
    """A server's frame; `first` are the other bits of its first byte."""
    size = len(payload)
    short = size if size < 126 else 126 if size < 65_536 else 127
    length = b"" if short < 126 else size.to_bytes(2 if short == 126 else 8, "big")
    key = b"\0\0\0\0" if mask else b""
    return bytes([first | opcode, short | (0x80 if mask else 0)]) + length + key + payload


def text(**fields: Any) -> bytes:
    """A message as a frame."""
    return frame(1, json.dumps(fields).encode())


class Guest:
    """One connection: what it sent, and ways to answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.unread = b""
        self.request = b""

    def read_request(self) -> dict[str, str]:
        """The headers of the upgrade, their names in small letters."""
        while b"\r\n\r\n" not in self.unread:
            self._receive()
        self.request, _, self.unread = self.unread.partition(b"\r\n\r\n")
        lines = [line.partition(":") for line in self.request.decode().split("\r\n")[1:]]
        return {name.lower(): value.strip() for name, _, value in lines}

    def read_frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame."""
        head = self._take(2)
        size = head[1] & 0x7F
        if size > 125:
            size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
        key, payload = self._take(4), self._take(size)
        return head[0] & 15, bytes(byte ^ key[i & 3] for i, byte in enumerate(payload))

    def read_message(self) -> dict[str, Any]:
        """The next message, whatever stands before it."""
        while True:
            opcode, payload = self.read_frame()
            if opcode == 1:
                message: dict[str, Any] = json.loads(payload)
                return message

    def shake_hands(self, changes: dict[str, str | None] | None = None) -> None:
        """Answer the upgrade as it should be, but for these headers (None: left out)."""
        asked = self.read_request()
        accept = base64.b64encode(hashlib.sha1(asked["sec-websocket-key"].encode() + GUID).digest()).decode()
        headers: dict[str, str | None] = {
            "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept,
            "Sec-WebSocket-Protocol": asked.get("sec-websocket-protocol"),
        }  # fmt: skip
        headers |= changes or {}
        lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        self.send("\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode())

    def log_in(self, **changes: Any) -> None:
        """Answer the login with a welcome."""
        login = self.read_message()
        self.send(text(**({"type": "welcome", "id": login.get("id"), "user": login.get("user")} | WELCOME | changes)))

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def drain(self) -> None:
        """Read until the client has gone."""
        while True:
            self._receive()

    def _take(self, n: int) -> bytes:
        while len(self.unread) < n:
            self._receive()
        taken, self.unread = self.unread[:n], self.unread[n:]
        return taken

    def _receive(self) -> None:
        some = self.sock.recv(1 << 16)
        if not some:
            raise ConnectionResetError
        self.unread += some


@contextmanager
def hostile_server(script: Callable[[Guest], None]) -> Iterator[int]:
    """Run a script with each connection, in a thread of its own; the port. A client that goes ends its script."""
    listener = socket.create_server(("127.0.0.1", 0))
    guests: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            script(Guest(sock))
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            Guest(sock).drain()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.settimeout(IDLE_LIMIT_S)
                guests.append(sock)
                threads.append(threading.Thread(target=serve, args=(sock,), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(10)
        for sock in guests:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        for sock in guests:
            sock.close()
