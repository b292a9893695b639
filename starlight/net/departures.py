"""Notices that a peer has gone while its connection is not read, and says what the kernel knows of a peer.

A transport sees the end of a connection by reading it. While reading is paused (messages wait for a handler, or the
client sends too much), sockets are therefore watched by an epoll of ours, which tells ends and errors alone. The
kernel's counters say whether a peer has sent anything since it was pinged, though none of it was read.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import termios
from contextlib import suppress
from typing import Final, Protocol

__all__ = ["Departures", "progress", "unread_bytes"]

EVENTS: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""A peer that has said it sends no more has gone, as when it is read; the other two are always told."""

EVENTS_LIMIT: Final = 256
"""Departures handled in one turn of the loop; the rest are told in the next."""

TCP_INFO_BYTES: Final = 136
ACKED_AND_RECEIVED: Final = struct.Struct("QQ")
ACKED_OFFSET: Final = 120
"""Where struct tcp_info of the kernel has `tcpi_bytes_acked` and `tcpi_bytes_received` (since Linux 4.1)."""


class WatchedConnection(Protocol):
    """What is told of a departure."""

    def on_departed(self) -> None: ...


class Departures:
    """Sockets that are not read at the moment, watched for their end. Belongs to the loop's thread."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: dict[int, WatchedConnection] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch from this loop."""
        self._epoll = select.epoll()
        self._loop = loop
        loop.add_reader(self._epoll.fileno(), self._on_ready)

    def stop(self) -> None:
        """Watch nothing any more."""
        if self._epoll is not None and self._loop is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
        self._epoll = None
        self._watched.clear()

    def watch(self, fd: int, connection: WatchedConnection) -> None:
        """Tell a connection once when its peer goes, also if it has gone already. The fd is borrowed until `forget`."""
        if self._epoll is not None:
            self._epoll.register(fd, EVENTS | select.EPOLLONESHOT)
            self._watched[fd] = connection

    def forget(self, fd: int) -> None:
        """Watch it no more: it is read again, or about to be closed. Nothing happens if it isn't watched."""
        if self._watched.pop(fd, None) is not None and self._epoll is not None:
            with suppress(OSError):
                self._epoll.unregister(fd)

    def _on_ready(self) -> None:
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0, EVENTS_LIMIT):
            connection = self._watched.get(fd)  # None: one that was told before it has ended this one
            if connection is not None:
                connection.on_departed()


def progress(sock: socket.socket) -> tuple[int, int]:
    """(bytes received from the peer, bytes of ours that it acknowledged) since the connect; (-1, -1) if unknown."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except OSError:  # no TCP
        return -1, -1
    if len(info) < TCP_INFO_BYTES:
        return -1, -1
    acked, received = ACKED_AND_RECEIVED.unpack_from(info, ACKED_OFFSET)
    return received, acked


def unread_bytes(fd: int) -> int:
    """How much of what the peer sent waits in the kernel to be read; 0 if that can't be told."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")
    except OSError:
        return 0
