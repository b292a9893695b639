"""TLS: the certificate, which can be read anew, and the listening sockets of wss.

Strategy: we accept the sockets ourselves, so that one too many, in all or of its address, is closed before the
handshake, which costs far more than the accept. Sockets in the handshake count as connections from the start. Then
aiofastnet's transport does the handshake and decrypts; what is written goes through the core's transport sink.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import aiofastnet

from starlight.config.settings import Settings
from starlight.errors import ConfigError
from starlight.net.listener import LISTEN_BACKLOG, SHARED_BACKLOG, bind_all
from starlight.net.refusals import Cause

__all__ = ["ACCEPTS_A_TURN", "Certificate", "TlsListener"]

log = logging.getLogger(__name__)

BIO_BYTES: Final = 17 * 1024
"""Of OpenSSL's buffer in each direction: one TLS record (16 KiB) and its frame. aiofastnet's default of 257 KiB would
hide as much of an outbox, and cost it for each connection."""

ACCEPTS_A_TURN: Final = 4
"""Sockets accepted before the loop turns to those that it has. A handshake takes a millisecond of ours, and a flood has
sent its part already: 64 in a turn brought the clients' round trip to 200 ms."""

REST_S: Final = 1.0
"""How long nothing is accepted when the process has no descriptors left; clients wait in the kernel's queue."""

SHUTDOWN_TIMEOUT_S: Final = 1.0
"""For the peer's close_notify."""


class Certificate:
    """A certificate with its key, and the context that is made of them.

    Args:
        cert: PEM file with the certificate and its chain.
        key: PEM file with the private key, not encrypted.

    Raises `ConfigError` for files that can't be read or don't belong together.
    """

    def __init__(self, cert: str, key: str) -> None:
        self._cert = cert
        self._key = key
        for field, path in (("tls_cert", cert), ("tls_key", key)):
            try:
                Path(path).read_bytes()
            except OSError as error:
                reason = (error.strerror or "error").lower()
                raise ConfigError(field, path, f"a file that can be read ({reason}); both are needed") from None
        self.context = self._make()

    @classmethod
    def of(cls, settings: Settings) -> Certificate | None:
        """That of the settings; None if they name neither file. Raises `ConfigError`."""
        return cls(settings.tls_cert, settings.tls_key) if settings.tls_cert or settings.tls_key else None

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._cert, self._key, password="")  # "" so that nobody is asked for one
        except (ssl.SSLError, OSError, ValueError):
            raise ConfigError("tls_cert", self._cert, f"a certificate in PEM that fits the key {self._key}") from None
        return context

    def take_over(self, new: Certificate) -> None:
        """Be another one, for connections to come."""
        self._cert, self._key, self.context = new._cert, new._key, new.context


class Connection(Protocol):
    """What a listener asks of a connection."""

    def admit(self, peername: tuple[Any, ...] | None) -> bool: ...
    def on_socket_lost(self) -> None: ...
    def blame(self, cause: Cause, peer: tuple[Any, ...] | None) -> None: ...


class Acceptor(Protocol):
    """What a listener asks of the acceptor."""

    def protocol(self) -> Any: ...


class _Reader:
    """What the loop calls when a socket is readable: aiofastnet's callback, until it has seen a reset, too.

    On an error of the socket uvloop calls a reader once and never again, and aiofastnet stops reading at the first
    short read. A reset right behind some bytes would go unnoticed until the next ping.
    """

    __slots__ = ("_callback", "_loop", "_poll", "is_removed")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._callback = callback
        self._poll = select.poll()
        self._poll.register(fd, 0)  # errors and the end of both directions are always told
        self.is_removed = False

    def __call__(self) -> None:
        if self.is_removed:
            return
        self._callback()
        if not self.is_removed and self._poll.poll(0):
            self._loop.call_soon(self)


class _Loop:
    """The loop as aiofastnet sees it, so that resets are noticed and who goes in the TLS handshake is no error of ours.

    aiofastnet reports an EOF there as one, and with the class `ConnectionResetError` in place of an exception, at
    which the loop's own handler fails: each health check that only connects would write a page into the log.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._readers: dict[int, _Reader] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._loop, name)
        setattr(self, name, found)  # so that it is looked up once
        return found

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """The loop's, with a `_Reader`."""
        reader = self._readers[fd] = _Reader(self._loop, fd, callback)
        self._loop.add_reader(fd, reader)

    def remove_reader(self, fd: int) -> bool:
        """The loop's."""
        reader = self._readers.pop(fd, None)
        if reader is not None:
            reader.is_removed = True
        return self._loop.remove_reader(fd)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """The loop's, for all else."""
        if context.get("exception") is not ConnectionResetError:
            self._loop.call_exception_handler(context)


class TlsListener:
    """Listening sockets of wss, with the methods and attributes of `Listener`.

    Args:
        acceptor: makes the protocol of each connection.
        certificate: whose context a new connection gets.
        handshake_timeout_s: for the TLS handshake alone.
    """

    def __init__(self, acceptor: Acceptor, certificate: Certificate, handshake_timeout_s: float) -> None:
        self.sockets: list[socket.socket] = []
        self.is_resting = False
        self.is_shared = False
        self._acceptor = acceptor
        self._certificate = certificate
        self._handshake_timeout_s = handshake_timeout_s
        self._loop = asyncio.get_running_loop()
        self._reporting_loop = cast(asyncio.AbstractEventLoop, _Loop(self._loop))
        self._handshakes: dict[asyncio.Task[None], tuple[socket.socket, Connection]] = {}

    async def open(self, host: str, port: int, *, reuse_port: bool = False) -> None:
        """Listen on all addresses of a host: see `Listener.open`. Raises OSError, socket.gaierror included."""
        self.sockets = await bind_all(host, port, reuse_port=reuse_port)
        try:
            self._accept_from_now_on(LISTEN_BACKLOG)
        except BaseException:
            await self.close()
            raise

    async def adopt(self, sockets: Sequence[socket.socket]) -> None:
        """Accept from sockets that listen already, and that others hold as well. Raises OSError."""
        self.is_shared = True
        self.sockets = list(sockets)
        self._accept_from_now_on(SHARED_BACKLOG)

    def _accept_from_now_on(self, backlog: int) -> None:
        for listening in self.sockets:
            listening.setblocking(False)
            listening.listen(backlog)
            self._loop.add_reader(listening, self._accept, listening)

    async def close(self) -> None:
        """Listen no more. Connections that were accepted stay, and those that wait for it are accepted now."""
        self.stop()

    def stop(self) -> None:
        """Listen no more, at once."""
        for listening in self.sockets:
            self._loop.remove_reader(listening)
            if not self.is_shared:
                self._accept_queued(listening)
            listening.close()
        self.sockets = []

    def _accept_queued(self, listening: socket.socket) -> None:
        for _ in range(LISTEN_BACKLOG // ACCEPTS_A_TURN + 1):
            try:
                if not self._accept_some(listening):
                    return
            except OSError:
                return

    def drop_handshakes(self) -> None:
        """Drop who is still in the TLS handshake."""
        for handshake in self._handshakes:
            handshake.cancel()

    def _accept(self, listening: socket.socket) -> None:
        try:
            self._accept_some(listening)
        except OSError as error:
            log.warning("nobody is accepted for %g s: %s", REST_S, error.strerror)
            self.is_resting = True
            self._loop.remove_reader(listening)
            self._loop.call_later(REST_S, self._accept_again, listening)

    def _accept_some(self, listening: socket.socket) -> bool:
        """Accept, up to a turn's share; whether there may be more. Raises OSError if the process has no descriptors."""
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            protocol = self._acceptor.protocol()
            connection: Connection = protocol.connection
            if not connection.admit(peer):
                sock.close()
                continue
            sock.setblocking(False)
            task = self._loop.create_task(self._shake_hands(sock, peer, protocol, connection))
            self._handshakes[task] = sock, connection
            task.add_done_callback(self._forget)
        return True

    def _forget(self, task: asyncio.Task[None]) -> None:
        """A handshake is over; one that was cancelled before it began has to be cleared up here."""
        sock, connection = self._handshakes.pop(task)
        if task.cancelled():
            connection.on_socket_lost()
            sock.close()

    def _accept_again(self, listening: socket.socket) -> None:
        self.is_resting = False
        if listening in self.sockets:
            self._loop.add_reader(listening, self._accept, listening)

    async def _shake_hands(
        self, sock: socket.socket, peer: tuple[Any, ...], protocol: Any, connection: Connection
    ) -> None:
        try:
            await aiofastnet.connect_accepted_socket(
                self._reporting_loop,
                lambda: protocol,
                sock,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._handshake_timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
                ssl_incoming_bio_size=BIO_BYTES,
                ssl_outgoing_bio_size=BIO_BYTES,
            )
        except (OSError, asyncio.CancelledError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            if isinstance(error, ssl.SSLError):
                connection.blame("tls", peer)
            elif isinstance(error, (TimeoutError, ConnectionAbortedError)):
                connection.blame("timeout", peer)
            connection.on_socket_lost()  # the socket itself is the transport's to close
        except Exception:
            log.exception("a TLS handshake failed in a way that is not the client's")
            connection.on_socket_lost()
