"""Nodes whose clients can't be written to directly: over TLS, and over a transport whose descriptor is of no use."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiofastnet

from starlight._connection import Acceptor
from starlight.node import Node
from tests.raw_client import TlsClient

__all__ = ["HidingNode", "TlsClient", "TlsNode", "contexts"]

SMALL_BIO_BYTES = 17 * 1024
"""One TLS record and a bit. The default of 257 KiB would hide as much of an outbox."""


def contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context, with a fresh certificate for localhost that the client trusts."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *command.split(), *names, *files], check=True, capture_output=True, timeout=30)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(certificate))
    return server, client


class ServerListener:
    """A loop's or aiofastnet's server with the face of a `Listener`."""

    is_shared = is_resting = False

    def __init__(self, server: Any) -> None:
        self.sockets = server.sockets
        self._server = server

    async def close(self) -> None:
        self._server.close()

    def drop_handshakes(self) -> None: ...


class TlsNode(Node):
    """A node behind TLS in its own process."""

    context: ssl.SSLContext

    async def _listen(self, acceptor: Acceptor, listening: Sequence[socket.socket]) -> Any:
        server = await aiofastnet.create_server(
            asyncio.get_running_loop(),
            acceptor.protocol,
            "127.0.0.1",
            0,
            ssl=self.context,
            ssl_incoming_bio_size=SMALL_BIO_BYTES,
            ssl_outgoing_bio_size=SMALL_BIO_BYTES,
        )
        return ServerListener(server)

    @property
    def url(self) -> str:
        return super().url.replace("ws://", "wss://")


class NoDescriptor:
    """A socket as a transport shows it, whose descriptor can't be used."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class HidingTransport:
    """A transport that hides its descriptor."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        found = self._transport.get_extra_info(name, default)
        return NoDescriptor(found) if name == "socket" else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HidingProtocol(asyncio.BufferedProtocol):
    """Gives the protocol inside a transport that hides its descriptor."""

    def __init__(self, inner: Any) -> None:
        for name in ("get_buffer", "buffer_updated", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(inner, name))
        self.connection_lost = inner.connection_lost
        self._inner = inner

    def connection_made(self, transport: Any) -> None:
        self._inner.connection_made(HidingTransport(transport))

    def get_buffer(self, sizehint: int) -> Any:
        return self._inner.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._inner.buffer_updated(nbytes)


class HidingNode(Node):
    """A node that has to write through its transports."""

    async def _listen(self, acceptor: Acceptor, listening: Sequence[socket.socket]) -> Any:
        loop = asyncio.get_running_loop()
        return ServerListener(await loop.create_server(lambda: HidingProtocol(acceptor.protocol()), "127.0.0.1", 0))
