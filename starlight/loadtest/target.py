"""Where a run goes: the URL, the dialect spoken there, and the HTTP upgrade."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlight.loadtest.dialects import DIALECTS
from starlight.loadtest.errors import BadScenario, BadTarget

WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
DEFAULT_URL = "ws://127.0.0.1:8765/ws"
KEYS = 64
"""Prepared Sec-WebSocket-Keys with their answers; connection i uses number i modulo this."""
KEY_MARK = b"KKKKKKKKKKKKKKKKKKKKKK=="


@dataclass(frozen=True)
class Target:
    """A server to measure.

    Attributes:
        url: `ws://host[:port][/path]`.
        dialect: `native` (starlight.v1; also simple peers that know some of its commands), `lines`
            (starlight.v1.lines), `raw` (any text is echoed or broadcast), `raw-lines` (the same from servers that merge
            texts into one frame, separated by newlines, as gorilla's chat example does), `nats` (nats-server's
            websocket), `socketio` (Engine.IO 4 over websocket).
        sender_receives: whether a broadcast also comes back to its sender; None: find out with one message before the
            run.
        headers: more HTTP headers of the upgrade.
    """

    url: str = DEFAULT_URL
    dialect: str = "native"
    sender_receives: bool | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dialect not in DIALECTS:
            raise BadScenario(f"unknown dialect {self.dialect!r}, expected one of {', '.join(DIALECTS)}")
        for name, value in self.headers.items():
            if any(character in name + value for character in "\r\n"):
                raise BadScenario(f"header {name!r} has a line break")
            if name.lower() == "sec-websocket-extensions":
                raise BadScenario(f"header {name!r}: the harness speaks no extension")
        parts = urlsplit(self.url)
        if parts.scheme == "wss":
            raise BadScenario(f"{self.url}: the harness speaks no TLS; put it behind a local TLS proxy")
        if parts.scheme != "ws" or not parts.hostname:
            raise BadScenario(f"{self.url!r} is no ws:// URL")
        try:
            _ = parts.port
        except ValueError as error:
            raise BadScenario(f"{self.url!r}: {error}") from error

    @property
    def subprotocols(self) -> list[str]:
        """Those asked for: of the headers, otherwise of the dialect. A server that takes another breaks RFC 6455."""
        asked = [word.strip() for value in self._asked() for word in value.split(",")]
        return asked or list(DIALECTS[self.dialect].subprotocols)

    def _asked(self) -> list[str]:
        return [value for name, value in self.headers.items() if name.lower() == "sec-websocket-protocol"]

    def resolve(self) -> tuple[bytes, bool]:
        """Return the target's socket address as the kernel wants it, and whether it is an IPv4 loopback address.

        Raises:
            BadTarget: the name can't be resolved.
        """
        parts = urlsplit(self.url)
        port = 80 if parts.port is None else parts.port
        try:
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise BadTarget(f"{self.url}: {error.strerror or error}") from error
        family, _, _, _, address = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)[0]
        return _socket_address(family, address), family == socket.AF_INET and str(address[0]).startswith("127.")

    def request(self) -> tuple[bytes, int]:
        """Return the upgrade request and where in it the 24 bytes of the key go."""
        parts = urlsplit(self.url)
        resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [
            f"GET {resource} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {KEY_MARK.decode()}",
        ]
        if self.subprotocols and not self._asked():
            lines.append(f"Sec-WebSocket-Protocol: {', '.join(self.subprotocols)}")
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        text = "\r\n".join([*lines, "", ""]).encode()
        return text, text.index(KEY_MARK)


def _socket_address(family: int, address: tuple[object, ...]) -> bytes:
    host, port = str(address[0]), int(str(address[1]))
    if family == socket.AF_INET:
        return struct.pack("=H", family) + struct.pack("!H", port) + socket.inet_pton(socket.AF_INET, host) + bytes(8)
    raw = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    scope = int(str(address[3]))
    return struct.pack("=H", family) + struct.pack("!HI", port, 0) + raw + struct.pack("=I", scope)


def websocket_keys(count: int = KEYS) -> list[tuple[bytes, bytes]]:
    """Return pairs of a Sec-WebSocket-Key and the Sec-WebSocket-Accept that answers it (RFC 6455 section 4.2.2)."""
    keys = [base64.b64encode(os.urandom(16)) for _ in range(count)]
    return [(key, base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest())) for key in keys]
