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
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Final

__all__ = ["FILES_IN_RESERVE", "LISTEN_BACKLOG", "Listener"]

log = logging.getLogger(__name__)

LISTEN_BACKLOG: Final = 4_096
"""Connections the kernel completes before we accept them: thousands of clients that come back at once after a restart
wait here instead of retrying their SYN a second later. The kernel lowers it to net.core.somaxconn."""

SHARED_BACKLOG: Final = 65_535
"""The same for a socket that outlives the process: what comes during a restart waits here, seconds of it. `listen` can
only be called with a number, so this is one that leaves the choice to net.core.somaxconn."""

FILES_IN_RESERVE: Final = 16
"""We rest with fewer free descriptors than this and go on with twice as many, so that it doesn't flap."""

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

    async def open(self, host: str, port: int, *, reuse_port: bool = False) -> None:
        """Listen on every address of a host. Raises OSError, socket.gaierror included.

        Args:
            host: name or address.
            port: TCP port; 0 lets the kernel choose.
            reuse_port: other processes may listen on it, too, and the kernel spreads connections among them.
        """
        server = await self._loop.create_server(
            self._factory, host, port, backlog=LISTEN_BACKLOG, reuse_port=reuse_port or None
        )
        self._servers = [server]
        self.sockets = [socket.socket(fileno=os.dup(listening.fileno())) for listening in server.sockets]
        self._guard = self._loop.create_task(self._keep_reserve())

    async def adopt(self, sockets: Sequence[socket.socket]) -> None:
        """Accept from sockets that listen already, and that others hold as well. Raises OSError."""
        self.is_shared = True
        self.sockets = list(sockets)
        await self._accept_again()
        self._guard = self._loop.create_task(self._keep_reserve())

    async def close(self) -> None:
        """Listen no more. Connections that were accepted stay, and those that wait for it are accepted now."""
        if self._guard is not None:
            self._guard.cancel()
        self._stop()
        waiting: list[socket.socket] = []
        for listening in self.sockets:
            if not self.is_shared:
                waiting += accept_queued(listening)
            listening.close()  # with nothing in between: who connects after the last accept is reset
        self.sockets = []
        accepting = [self._loop.connect_accepted_socket(self._factory, sock) for sock in waiting]
        await asyncio.gather(*accepting, return_exceptions=True)

    def drop_handshakes(self) -> None:
        """Nothing: here a connection has a protocol from its accept, and the acceptor knows it."""

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
            self._servers.append(await self._loop.create_server(self._factory, sock=again, backlog=backlog))


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
