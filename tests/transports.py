"""Nodes whose clients can't be written to directly: over TLS, and over a transport whose descriptor is of no use."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiofastnet

from starlight._connection import Acceptor
from starlight.node import Node
from tests.raw_client import TIMEOUT_S, RawClient, close_frame

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


class TlsClient(RawClient):
    """A raw client that speaks TLS by hand, so that it can stop reading."""

    context: ssl.SSLContext
    _tls: ssl.SSLObject

    async def start_tls(self) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self.context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        await self._do(self._tls.do_handshake)

    async def _do(self, step: Callable[[], Any]) -> Any:
        """Run a step of the TLS state machine until it is done, with the socket's help."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._send_out()
                some = await super().receive()
                self._incoming.write(some) if some else self._incoming.write_eof()
                continue
            await self._send_out()
            return result

    async def _send_out(self) -> None:
        if some := self._outgoing.read():
            await super().send(some)

    async def send(self, data: bytes) -> None:
        for i in range(0, len(data), 16_384):
            await self._do(lambda part=data[i : i + 16_384]: self._tls.write(part))

    async def receive(self, size: int = 1 << 16) -> bytes:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                data: bytes = await self._do(lambda: self._tls.read(size))
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLEOFError:
            raise ConnectionResetError("EOF without close_notify") from None
        return data

    async def on_close(self) -> None:
        """TLS has no EOF in one direction: the server waits for a close frame of ours."""
        with contextlib.suppress(OSError, ssl.SSLError):
            await self.send(close_frame(1000))

    def half_close(self) -> None:
        raise NotImplementedError("TLS has no half-close here")


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
