"""Row 65: thousands that come back at once. (That coming and going leaves nothing behind: `tests/long/leaks.py`.)"""

from __future__ import annotations

import asyncio
import json
import resource
import select

import uvloop

from starlight.node import RESERVED_FILES
from tests.long.leaks import connect
from tests.raw_client import message, request, set_reset
from tests.server_process import server_process
from tests.support import IS_SANITIZED

LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production


async def test_65_ten_thousand_that_come_back_at_once_are_back_within_ten_seconds():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    n_clients = min(10_000, limit - RESERVED_FILES - 100)
    async with server_process(max_connections=n_clients, ping_interval_s=300) as server:
        started_s = asyncio.get_running_loop().time()
        await asyncio.get_running_loop().run_in_executor(None, crowd, server.port, n_clients)
        assert asyncio.get_running_loop().time() - started_s < 10 or IS_SANITIZED
        await server.until(connections=0)


def crowd(port: int, n_clients: int) -> None:
    """Connect all, then log all in, then drop all with a reset."""
    socks = []
    for i in range(n_clients):
        socks.append(connect(port, i))
        socks[-1].sendall(request() + message("login", user=f"u{i}"))
    waiting = {sock.fileno(): (sock, bytearray()) for sock in socks}
    poll = select.epoll()
    for fd in waiting:
        poll.register(fd, select.EPOLLIN)
    while waiting:
        ready = poll.poll(10)
        assert ready, f"{len(waiting)} never heard anything"
        for fd, _ in ready:
            sock, heard = waiting[fd]
            some = sock.recv(4096)
            assert some, bytes(heard)
            heard += some
            if b'"welcome"' in heard:
                welcome = json.loads(heard[heard.index(b'{"type') :])
                assert welcome["user"].startswith("u")
                poll.unregister(fd)
                del waiting[fd]
    poll.close()
    for sock in socks:
        set_reset(sock)
        sock.close()
