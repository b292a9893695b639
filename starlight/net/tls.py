"""TLS: the certificate, which can be read anew, and the handshake.

aiofastnet's transport does the handshake and decrypts; what is written goes through the core's transport sink.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import aiofastnet

from starlight.config.reconfigure import Commit
from starlight.config.settings import Settings
from starlight.errors import ConfigError

__all__ = ["Certificate", "TlsHandshakes"]

BIO_BYTES: Final = 17 * 1024
"""Of OpenSSL's buffer in each direction: one TLS record (16 KiB) and its frame. aiofastnet's default of 257 KiB would
hide as much of an outbox, and cost it for each connection."""

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

    def reconfigure(self, settings: Settings) -> Commit:
        """Another one for connections to come: see `config.reconfigure`. Raises `ConfigError`."""
        new = Certificate(settings.tls_cert, settings.tls_key)

        def commit() -> None:
            self._cert, self._key, self.context = new._cert, new._key, new.context

        return commit


class _ResetAwareReader:
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


class _TlsLoop:
    """The loop as aiofastnet sees it, so that resets are noticed and who goes in the TLS handshake is no error of ours.

    aiofastnet reports an EOF there as one, and with the class `ConnectionResetError` in place of an exception, at
    which the loop's own handler fails: each health check that only connects would write a page into the log.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._readers: dict[int, _ResetAwareReader] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._loop, name)
        setattr(self, name, found)  # so that it is looked up once
        return found

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """The loop's, with a `_ResetAwareReader`."""
        reader = self._readers[fd] = _ResetAwareReader(self._loop, fd, callback)
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


class TlsHandshakes:
    """The server's part of TLS handshakes. Belongs to the running loop.

    Args:
        certificate: whose context a connection gets that comes now.
        timeout_s: for the TLS handshake alone.
    """

    def __init__(self, certificate: Certificate, timeout_s: float) -> None:
        self._certificate = certificate
        self._timeout_s = timeout_s
        self._loop = cast(asyncio.AbstractEventLoop, _TlsLoop(asyncio.get_running_loop()))

    async def shake_hands(self, protocol: Any, sock: socket.socket) -> None:
        """Make an accepted socket a connection of a protocol.

        Raises OSError (ssl.SSLError and TimeoutError are such) where the handshake fails; the socket is closed then.
        """
        await aiofastnet.connect_accepted_socket(
            self._loop,
            lambda: protocol,
            sock,
            ssl=self._certificate.context,
            ssl_handshake_timeout=self._timeout_s,
            ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            ssl_incoming_bio_size=BIO_BYTES,
            ssl_outgoing_bio_size=BIO_BYTES,
        )
