"""From an accepted socket to a connection with a transport: aiofastnet's for wss, the loop's own for ws.

One connection too many, in all or of its address, is closed here, before anything is spent on it: a TLS handshake costs
far more than the accept. The others count from here on, those in the handshake as well. Connections of ws come here at
the end alone (see `accept`); the loop makes the transports of all others, and the connection looks whether it may stay.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlight.net.accept import Address
    from starlight.net.connection import Connection
    from starlight.net.tls import TlsHandshakes

__all__ = ["Transports"]

log = logging.getLogger(__name__)


class Transports:
    """Makes the transports of one port.

    Args:
        make_protocol: makes a protocol for the next connection, which is its attribute `connection`.
        tls: None for plain TCP.
    """

    def __init__(self, make_protocol: Callable[[], Any], tls: TlsHandshakes | None) -> None:
        self._make_protocol = make_protocol
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[asyncio.Task[None], tuple[socket.socket, Connection]] = {}

    def take(self, sock: socket.socket, peer: Address) -> None:
        """Give an accepted socket its transport, or close it if it may not come in."""
        protocol = self._make_protocol()
        connection: Connection = protocol.connection
        if not connection.admit(peer):
            sock.close()
            return
        task = self._loop.create_task(self._make(sock, peer, protocol, connection))
        self._under_way[task] = sock, connection
        task.add_done_callback(self._forget)

    def drop_handshakes(self) -> None:
        """End connections whose TLS handshake is not done."""
        for task in self._under_way:
            task.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        """A transport is made; where that was cancelled before it began, what it would have closed is closed here."""
        sock, connection = self._under_way.pop(task)
        if task.cancelled():
            connection.on_socket_lost()
            sock.close()

    async def _make(self, sock: socket.socket, peer: Address, protocol: Any, connection: Connection) -> None:
        try:
            if self._tls is None:
                await self._loop.connect_accepted_socket(lambda: protocol, sock)
            else:
                await self._tls.shake_hands(protocol, sock)
        except (OSError, asyncio.CancelledError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            if isinstance(error, ssl.SSLError):
                connection.blame("tls", peer)
            elif isinstance(error, (TimeoutError, ConnectionAbortedError)):
                connection.blame("timeout", peer)
            connection.on_socket_lost()  # the socket itself is the transport's to close
        except Exception:
            log.exception("a connection failed before its handshake in a way that is not the client's")
            connection.on_socket_lost()
