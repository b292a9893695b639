"""Row 56: many channels joined and left give their memory back. Row 65: thousands that come back at once.

(That connections leave nothing behind is shown by `tests/long/leaks.py`.) With the variable `LONG_TESTS=1` row 56 is
played with a million channels that are there at the same time (a minute, and half a gigabyte).
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import socket
import threading

import uvloop

from starlight._trim import CROWD
from starlight.node import RESERVED_FILES
from tests.long.leaks import connect
from tests.raw_client import message, request, set_reset
from tests.server_process import server_process
from tests.support import IS_SANITIZED

LOOPS = {"uvloop": uvloop.new_event_loop}  # as in production

N_MEMBERS = 1_000 if os.environ.get("LONG_TESTS") else 20
CHANNELS_EACH = 1_000  # the limit of a client


def join_and_leave(port: int, round_: int, at_peak: threading.Event, go_on: threading.Event) -> None:
    """Each member joins a thousand channels of its own; when all are there, wait; then each leaves them."""
    socks = []
    for i in range(N_MEMBERS):
        socks.append(connect(port, i))
        socks[-1].settimeout(300)
        socks[-1].sendall(request() + message("login", user=f"u{i}") + message("ping", id="in"))
        wait_for(socks[-1], b'"in"')
    for word in ("join", "leave"):
        for i, sock in enumerate(socks):
            names = [f"round-{round_}-channel-{i}-{n}" for n in range(CHANNELS_EACH)]
            sock.sendall(b"".join(message(word, channel=name) for name in names) + message("ping", id=word))
        for sock in socks:
            wait_for(sock, b'"%b"' % word.encode())
        if word == "join":
            at_peak.set()
            assert go_on.wait(600)
    for sock in socks:
        sock.close()


def wait_for(sock: socket.socket, wanted: bytes) -> None:
    heard = b""
    while wanted not in heard:
        some = sock.recv(65_536)
        assert some, heard
        heard += some


async def test_56_channels_joined_and_left_give_their_memory_back():
    async with server_process(ping_interval_s=300) as server:
        loop = asyncio.get_running_loop()
        start, peaks, ends = await server.ask("status"), [], []
        for round_ in range(3):
            at_peak, go_on = threading.Event(), threading.Event()
            playing = loop.run_in_executor(None, join_and_leave, server.port, round_, at_peak, go_on)
            assert await loop.run_in_executor(None, at_peak.wait, 600)
            peaks.append(await server.ask("status"))
            go_on.set()
            await playing
            await server.until(connections=0, live=0)
            if peaks[-1]["channels"] >= CROWD:
                await asyncio.sleep(1.5)  # so that the node notices, and the C library gives its pages back
            ends.append(await server.ask("status"))
        print([(status["channels"], status["resident_bytes"] >> 20) for status in (start, *peaks, *ends)])
        for status in peaks:
            assert status["channels"] == N_MEMBERS * CHANNELS_EACH  # the hub's; the core has everyone's beside them
        if not IS_SANITIZED:
            held_bytes = peaks[0]["resident_bytes"] - start["resident_bytes"]
            assert held_bytes < 800 * N_MEMBERS * CHANNELS_EACH + (8 << 20)
            assert ends[-1]["resident_bytes"] - start["resident_bytes"] < held_bytes / 4 + (16 << 20)
            assert peaks[-1]["resident_bytes"] - peaks[0]["resident_bytes"] < held_bytes / 20 + (4 << 20)


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
