"""Accepting: the one place where connections come in, for the clients' port (ws and wss) and for the internal one.

A `Listener` has sockets that are bound to an address, or that a service manager handed over. It accepts in batches, so
that the loop serves clients between two of them, and hands each connection on. For plain TCP it has uvloop accept in
its place: that is C from the kernel to the transport, and accepting here, with a socket object and a task for each
connection, takes 20% more instructions for connect and login (callgrind: 390,000 and 468,000; 419,000 with neither
Python's `socket.accept` nor a second accept that finds nothing).

The one answer to a process that runs out of file descriptors is here as well:

    ACCEPTING --few are left, or an accept fails--> RESTING --twice as many are left--> ACCEPTING

While it rests, clients wait in the kernel's queue. An accept that fails leaves its client there too, so trying on would
be a loop that is busy and gets nowhere. `max_connections` keeps the clients themselves below the limit of open files,
but the application opens files as well. Where it takes all within `CHECK_S`, uvloop accepts plain connections and
closes them until the listener rests.

The law: a client that has connected isn't refused at the end. A connection that the kernel has completed waits in the
listening socket's queue, and closing the socket would reset it; so `stop` accepts the queue first. Sockets that another
process holds too are left as they are: their queue stays for that process.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = ["BATCH", "LISTEN_BACKLOG", "Address", "Listener", "bind_all", "has_free_files"]

log = logging.getLogger(__name__)

Address = tuple[Any, ...]
"""Of a peer, as the socket module gives it."""

LISTEN_BACKLOG: Final = 4_096
"""Connections the kernel completes before we accept them: thousands of clients that come back at once after a restart
wait here instead of retrying their SYN a second later. The kernel lowers it to net.core.somaxconn."""

SHARED_BACKLOG: Final = 65_535
"""The same for a socket that outlives the process: what comes during a restart waits here, seconds of it. `listen` can
only be called with a number, so this is one that leaves the choice to net.core.somaxconn."""

BATCH: Final = 4
"""Connections accepted from a socket before the loop turns to those that it has. A TLS handshake takes 1 ms, and
a flood has sent its part already: 64 in a turn brought the clients' round trip to 200 ms."""

FILES_IN_RESERVE: Final = 16
"""Descriptors kept for what isn't a client: it rests with fewer, and goes on with twice as many, so it doesn't flap."""

CHECK_S: Final = 0.1
"""How often the free descriptors are counted: about 30 system calls each time."""

REST_S: Final = 1.0
"""How long it rests at least after an accept that failed: memory or the system's table of files may be what is short,
and that can't be counted from here."""

_PORT_ATTEMPTS: Final = 8
"""How often the kernel is asked for a port that is free for all addresses of a host."""


class Listener:
    """Listening sockets of one port. Belongs to the running loop.

    Args:
        sockets: bound or listening; the listener's from now on.
        take: gets each connection, a socket that doesn't block, and its peer's address. Must not raise.
        make_protocol: for plain TCP: the loop accepts and gives each connection such a protocol, until the listener
            stops; what waits then goes to `take`.
        name: of the port, for the log.
        backlog: connections that may wait in the kernel.
        is_shared: whether other processes hold the sockets, too.
        reserve: descriptors that stay free; 0: it rests only when an accept has failed.

    Attributes:
        sockets: none any more once it was stopped.
        is_resting: whether it accepts nothing at present, for want of descriptors.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        take: Callable[[socket.socket, Address], None],
        *,
        name: str,
        make_protocol: Callable[[], asyncio.BaseProtocol] | None = None,
        backlog: int = LISTEN_BACKLOG,
        is_shared: bool = False,
        reserve: int = FILES_IN_RESERVE,
    ) -> None:
        self.sockets = list(sockets)
        self.is_resting = False
        self.is_shared = is_shared
        self._take = take
        self._make_protocol = make_protocol
        self._opening: asyncio.Task[None] | None = None
        self._servers: list[asyncio.Server] = []
        self._name = name
        self._backlog = SHARED_BACKLOG if is_shared else backlog
        self._reserve = reserve
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._rest_until_s = -math.inf

    def start(self) -> None:
        """Accept from now on. Raises OSError if a socket can't listen."""
        for listening in self.sockets:
            listening.setblocking(False)
            listening.listen(self._backlog)
        self._watch_sockets()
        self._look_later()

    def stop(self) -> None:
        """Listen no more. What waits to be accepted is, unless the sockets are shared. A second call does nothing."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.is_resting:
            self._unwatch_sockets()
        for listening in self.sockets:
            if not self.is_shared:
                self._accept_queue(listening)
            listening.close()  # with nothing in between: a client that connects after the last accept is reset
        self.sockets = []

    def _watch_sockets(self) -> None:
        if self._make_protocol is not None:
            self._opening = self._loop.create_task(self._open_servers(self._make_protocol))
            return
        for listening in self.sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def _unwatch_sockets(self) -> None:
        if self._make_protocol is None:
            for listening in self.sockets:
                self._loop.remove_reader(listening)
        if self._opening is not None:
            self._opening.cancel()
        for server in self._servers:
            server.close()
        self._servers = []

    async def _open_servers(self, make_protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        """Have the loop accept: from duplicates, as a server closes its socket and the queue is accepted at the end."""
        try:
            for listening in self.sockets:
                server = await self._loop.create_server(
                    make_protocol, sock=listening.dup(), backlog=self._backlog, start_serving=False
                )
                self._servers.append(server)
                await server.start_serving()
        except OSError as error:
            self._fail(error)

    # --- accepting -----------------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        if self.is_resting:
            return  # since another socket of the same turn
        try:
            self._accept_batch(listening)
        except OSError as error:
            self._fail(error)

    def _accept_queue(self, listening: socket.socket) -> None:
        """All that the kernel holds; the rest is lost where descriptors run out."""
        try:
            for _ in range(self._backlog // BATCH + 1):
                if not self._accept_batch(listening):
                    return
        except OSError as error:
            log.warning("%s is closed while connections wait there: %s", self._name, error.strerror)

    def _accept_batch(self, listening: socket.socket) -> bool:
        """Hand on what waits, up to `BATCH`; whether there may be more. Raises OSError if no more can be accepted."""
        for _ in range(BATCH):
            try:
                connection, peer = listening.accept()
            except ConnectionAbortedError:
                continue
            except (BlockingIOError, InterruptedError):
                return False
            connection.setblocking(False)
            self._take(connection, peer)
        return True

    # --- descriptors ---------------------------------------------------------------------------------------------

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(CHECK_S, self._look)

    def _look(self) -> None:
        """Judge by the free descriptors whether to rest or to go on."""
        self._look_later()
        if not self.is_resting:
            if not has_free_files(self._reserve):
                self._rest(f"fewer than {self._reserve} file descriptors are left")
        elif self._loop.time() >= self._rest_until_s and has_free_files(2 * self._reserve or 1):
            self.is_resting = False
            self._watch_sockets()
            log.warning("%s accepts connections again", self._name)

    def _fail(self, error: OSError) -> None:
        self._rest_until_s = self._loop.time() + REST_S
        self._rest(error.strerror or str(error))

    def _rest(self, reason: str) -> None:
        self.is_resting = True
        self._unwatch_sockets()
        log.warning("%s accepts no connections for now, which wait in the kernel: %s", self._name, reason)


def has_free_files(wanted: int) -> bool:
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
