"""A node's listening sockets: its own, or those that a service manager handed to it.

At the end nobody who has connected is refused. A connection that the kernel has completed waits in the listening
socket's queue, and closing the socket resets it; so the queue is accepted first. A socket that others hold too is left
as it is: its queue stays, for the next process. They rest while the process is about to run out of file descriptors.

An accept that fails for want of a descriptor leaves its client in the kernel's queue, so libuv (uvloop) tries it again
in every poll: a loop that is busy and gets nowhere. `max_connections` keeps the node itself below the limit, but the
application opens files too. While we rest, clients wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

__all__ = ["FILES_IN_RESERVE", "LISTEN_BACKLOG", "Listener", "bind_all"]

log = logging.getLogger(__name__)

LISTEN_BACKLOG: Final = 4_096
"""Connections the kernel completes before we accept them: thousands of clients that come back at once after a restart
wait here instead of retrying their SYN a second later. The kernel lowers it to net.core.somaxconn."""

SHARED_BACKLOG: Final = 65_535
"""The same for a socket that outlives the process: what comes during a restart waits here, seconds of it. `listen` can
only be called with a number, so this is one that leaves the choice to net.core.somaxconn."""

FILES_IN_RESERVE: Final = 16
"""We rest with fewer free descriptors than this and go on with twice as many, so that it doesn't flap."""

_PORT_ATTEMPTS: Final = 8
"""How often the kernel is asked for a port that is free for all addresses of a host."""

CHECK_S: Final = 0.1
"""How often the free descriptors are counted: about 20 system calls each time."""


class Listener:
    """The listening sockets. They are ours from `open` to `close`; the loop has a server on duplicates while we accept.

    Attributes:
        sockets: as those of `asyncio.Server`.
        is_resting: whether it accepts nobody for want of descriptors.
        is_shared: whether the sockets are somebody else's as well.
    """

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        self.sockets: list[socket.socket] = []
        self.is_resting = False
        self.is_shared = False
        self._factory = factory
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.get_running_loop()
        self._guard: asyncio.Task[None] | None = None
        self._waiting: list[socket.socket] = []  # accepted by `stop`, and served by `close`

    async def open(self, host: str, port: int, *, reuse_port: bool = False) -> None:
        """Listen on every address of a host: see `bind_all`. Raises OSError, socket.gaierror included."""
        self.sockets = await bind_all(host, port, reuse_port=reuse_port)
        try:
            await self._accept_again()
        except BaseException:
            self._stop()
            self._close_sockets()
            raise
        self._guard = self._loop.create_task(self._keep_reserve())

    async def adopt(self, sockets: Sequence[socket.socket]) -> None:
        """Accept from sockets that listen already, and that others hold as well. Raises OSError."""
        self.is_shared = True
        self.sockets = list(sockets)
        await self._accept_again()
        self._guard = self._loop.create_task(self._keep_reserve())

    def stop(self) -> None:
        """Listen no more, at once; `close` serves those who waited for it."""
        if self._guard is not None:
            self._guard.cancel()
        self._stop()
        for listening in self.sockets:
            if not self.is_shared:
                self._waiting += accept_queued(listening)
            listening.close()  # with nothing in between: who connects after the last accept is reset
        self.sockets = []

    async def close(self) -> None:
        """Listen no more. Connections that were accepted stay, and those that wait for it are accepted now."""
        self.stop()
        waiting, self._waiting = self._waiting, []
        accepting = [self._loop.connect_accepted_socket(self._factory, sock) for sock in waiting]
        await asyncio.gather(*accepting, return_exceptions=True)

    def drop_handshakes(self) -> None:
        """Nothing: here a connection has a protocol from its accept, and the acceptor knows it."""

    def _close_sockets(self) -> None:
        for listening in self.sockets:
            listening.close()
        self.sockets = []

    def _stop(self) -> None:
        for server in self._servers:
            server.close()
        self._servers = []

    async def _keep_reserve(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            if not self.is_resting and not _has_free_files(FILES_IN_RESERVE):
                self.is_resting = True
                self._stop()
                log.warning("fewer than %d file descriptors are left: nobody is accepted now", FILES_IN_RESERVE)
            elif self.is_resting and _has_free_files(2 * FILES_IN_RESERVE):
                await self._accept_again()
                self.is_resting = False
                log.warning("file descriptors are left again: accepting")

    async def _accept_again(self) -> None:
        backlog = SHARED_BACKLOG if self.is_shared else LISTEN_BACKLOG
        for listening in self.sockets:
            again = listening.dup()
            try:
                self._servers.append(await self._loop.create_server(self._factory, sock=again, backlog=backlog))
            except BaseException:
                again.close()
                raise


async def bind_all(host: str, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """A bound socket for every address of a host, all on one port; all of them, or none and an error.

    ``::`` is every address of this machine, those of IPv4 as well: on one socket of both families, which also works
    where the kernel's default (net.ipv6.bindv6only) is another. Other addresses of IPv6 are of that family alone.

    Args:
        host: name or address.
        port: TCP port; 0 lets the kernel choose, the same for all addresses.
        reuse_port: other processes may listen on it, too, and the kernel spreads connections among them.

    Raises OSError, socket.gaierror included.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for attempt in range(_PORT_ATTEMPTS):
        try:
            return _bind(addresses, reuse_port)
        except OSError as error:
            is_chosen = port == 0 and len(addresses) > 1  # what is free for one address may be taken for another
            if not is_chosen or error.errno != errno.EADDRINUSE or attempt == _PORT_ATTEMPTS - 1:
                raise
    raise AssertionError


def _bind(addresses: Sequence[tuple[int, tuple[Any, ...]]], reuse_port: bool) -> list[socket.socket]:
    bound: list[socket.socket] = []
    try:
        for family, (host, port, *rest) in addresses:
            sock = socket.socket(family, socket.SOCK_STREAM)
            bound.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            sock.bind((host, port or bound[0].getsockname()[1], *rest))
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def accept_queued(listening: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait in the queue of a socket that doesn't block; none more when there is an error."""
    for _ in range(LISTEN_BACKLOG + 1):
        try:
            sock = listening.accept()[0]
        except ConnectionAbortedError:
            continue
        except OSError:
            return
        sock.setblocking(False)
        yield sock


def _has_free_files(wanted: int) -> bool:
    """Whether the process can open so many more files."""
    opened: list[int] = []
    try:
        for _ in range(wanted):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    finally:
        for fd in opened:
            os.close(fd)
    return True
