"""Ten thousand clients that lose their connections in one moment and all come back in the next."""

from __future__ import annotations

import asyncio
import resource
import select
import socket
import time

from starlight.server.node import RESERVED_FILES
from tests.long.leaks import IP_BIND_ADDRESS_NO_PORT
from tests.long.outcome import Outcome
from tests.support.raw_client import message, request, set_reset
from tests.support.server_process import server_process
from tests.support.witness import witness

CLIENTS = 10_000
WITHIN_S = 10.0
GIVE_UP_S = 120.0
"""Also the deadlines of the node: on a busy machine this thread may be later than the usual ones."""
UPGRADES = 200
"""Sockets opened before the answers to others are looked at."""


async def run(clients: int = CLIENTS) -> Outcome:
    """They come, are cut off by a reset, and come back at once; a witness beside them."""
    outcome = Outcome("comeback")
    began_s = time.monotonic()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    clients = min(clients, limit - RESERVED_FILES - 200)
    deadlines = {"ping_interval_s": 300, "handshake_timeout_s": GIVE_UP_S, "login_timeout_s": GIVE_UP_S}
    async with server_process(max_connections=clients + 10, **deadlines) as server, witness(server.port, 60):
        crowd = Crowd(server.port, clients)
        loop = asyncio.get_running_loop()
        first_s = await loop.run_in_executor(None, crowd.come)
        await loop.run_in_executor(None, crowd.cut)
        second_s = await loop.run_in_executor(None, crowd.come)
        status = await server.until(clients=clients + 1, timeout_s=30)
        outcome.require(status["accepted"] == 2 * clients + 1, f"{status['accepted']} connections were accepted")
        outcome.require(not status["log"], f"logged {status['log']}")
        await loop.run_in_executor(None, crowd.cut)
        await server.until(connections=1, timeout_s=30)
    outcome.seconds = time.monotonic() - began_s
    outcome.expect(second_s <= WITHIN_S, f"it took {second_s:.1f} s until all were back")
    outcome.figures = {"clients": clients, "came within s": first_s, "came back within s": second_s}
    return outcome


class Crowd:
    """Clients in one thread."""

    def __init__(self, port: int, number: int) -> None:
        self.port = port
        self.number = number
        self.socks: list[socket.socket] = []

    def come(self) -> float:
        """Connect and log in, all at once; the seconds until the last one has its welcome. Raises AssertionError."""
        began_s = time.monotonic()
        poll = select.epoll()
        waiting: dict[int, tuple[socket.socket, bytearray]] = {}
        for i in range(self.number):
            sock = open_one(self.port, i)
            waiting[sock.fileno()] = (sock, bytearray())
            poll.register(sock, select.EPOLLOUT)
            self.socks.append(sock)
            if i % UPGRADES == 0:
                self._step(poll, waiting, 0)
        while waiting:
            assert time.monotonic() - began_s < GIVE_UP_S, f"{len(waiting)} never heard anything"
            self._step(poll, waiting, 1)
        poll.close()
        return time.monotonic() - began_s

    def _step(self, poll: select.epoll, waiting: dict[int, tuple[socket.socket, bytearray]], timeout_s: float) -> None:
        for fd, events in poll.poll(timeout_s):
            sock, heard = waiting[fd]
            if events & select.EPOLLOUT:
                sock.send(request() + message("login", user=f"u{fd}"))
                poll.modify(fd, select.EPOLLIN)
                continue
            some = sock.recv(4096)
            assert some, bytes(heard)
            heard += some
            if b'"welcome"' in heard:
                poll.unregister(fd)
                del waiting[fd]

    def cut(self) -> None:
        """Reset all connections."""
        for sock in self.socks:
            set_reset(sock)
            sock.close()
        self.socks.clear()


def open_one(port: int, n: int) -> socket.socket:
    """Begin a connection, from one of many addresses."""
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.setblocking(False)
    sock.bind((f"127.0.1.{1 + n % 250}", 0))
    sock.connect_ex(("127.0.0.1", port))
    return sock
