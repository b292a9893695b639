"""A node's listening sockets. They rest while the process is about to run out of file descriptors.

An accept that fails for want of a descriptor leaves its client in the kernel's queue, so libuv (uvloop) tries it again
in every poll: a loop that is busy and gets nowhere. `max_connections` keeps the node itself below the limit, but the
application opens files too. While we rest, clients wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

__all__ = ["FILES_IN_RESERVE", "Listener"]

log = logging.getLogger(__name__)

FILES_IN_RESERVE: Final = 16
"""We rest with fewer free descriptors than this and go on with twice as many, so that it doesn't flap."""

CHECK_S: Final = 0.1
"""How often the free descriptors are counted: about 20 system calls each time."""


class Listener:
    """The listening sockets. They are ours from `open` to `close`; the loop has a server on duplicates while we accept.

    Attributes:
        sockets: as those of `asyncio.Server`.
        is_resting: whether it accepts nobody for want of descriptors.
    """

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol], backlog: int) -> None:
        self.sockets: list[socket.socket] = []
        self.is_resting = False
        self._factory = factory
        self._backlog = backlog
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.get_running_loop()
        self._guard: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, backlog: int) -> Listener:
        """Listen on every address of a host. Raises OSError, socket.gaierror included.

        Args:
            factory: makes the protocol of each connection.
            host: name or address.
            port: TCP port; 0 lets the kernel choose.
            backlog: connections the kernel completes before they are accepted.
        """
        self = cls(factory, backlog)
        server = await self._loop.create_server(factory, host, port, backlog=backlog)
        self._servers = [server]
        self.sockets = [socket.socket(fileno=os.dup(listening.fileno())) for listening in server.sockets]
        self._guard = self._loop.create_task(self._keep_reserve())
        return self

    def close(self) -> None:
        """Listen no more. Connections that were accepted stay."""
        if self._guard is not None:
            self._guard.cancel()
        self._stop()
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
        for listening in self.sockets:
            again = listening.dup()
            self._servers.append(await self._loop.create_server(self._factory, sock=again, backlog=self._backlog))


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
