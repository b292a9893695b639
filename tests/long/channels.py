"""A million channels that are there at the same time and left again: their memory comes back.

Members are raw sockets in a thread; each has as many channels as a client may have, all of its own.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time

from tests.long.leaks import connect
from tests.long.outcome import Outcome
from tests.support.fakes import IS_SANITIZED
from tests.support.raw_client import message, request
from tests.support.server_process import server_process
from tests.support.witness import witness

CHANNELS = 1_000_000
CHANNELS_EACH = 1_000
"""The limit of a client."""
ROUNDS = 3
MIB = 1 << 20


async def run(channels: int = CHANNELS) -> Outcome:
    """Joined, all there, and left; three times over."""
    outcome = Outcome("channels")
    began_s = time.monotonic()
    members = max(1, channels // CHANNELS_EACH)
    async with server_process(ping_interval_s=300) as server, witness(server.port, 60):
        loop = asyncio.get_running_loop()
        await server.until(channels=1)
        start, peaks, ends = await server.ask("status"), [], []
        for round_ in range(ROUNDS):
            at_peak, go_on = threading.Event(), threading.Event()
            playing = loop.run_in_executor(None, join_and_leave, server.port, round_, members, at_peak, go_on)
            assert await loop.run_in_executor(None, at_peak.wait, 600)
            peaks.append(await server.ask("status"))
            go_on.set()
            await playing
            await server.until(connections=1, channels=1, timeout_s=30)
            await asyncio.sleep(1.5)  # so that the node notices, and the C library gives its pages back
            ends.append(await server.ask("status"))
    outcome.seconds = time.monotonic() - began_s
    most = [status["channels"] - 1 for status in peaks]
    outcome.require(most == [members * CHANNELS_EACH] * ROUNDS, f"channels at the peaks: {most}")
    held, kept, grown = (
        after["resident_bytes"] - before["resident_bytes"]
        for after, before in ((peaks[0], start), (ends[-1], start), (peaks[-1], peaks[0]))
    )
    if not IS_SANITIZED:
        outcome.require(held < 800 * most[0] + 8 * MIB, f"they took {held:,} bytes")
        outcome.require(kept < held / 4 + 16 * MIB, f"{kept:,} of {held:,} bytes did not come back")
        outcome.require(grown < held / 20 + 4 * MIB, f"each round takes more: {grown:,} bytes")
    outcome.figures = {
        "channels at a time": most[0],
        "rounds": ROUNDS,
        "bytes a channel": held / most[0],
        "MiB with them": round(held / MIB, 1),
        "MiB that stayed": round(kept / MIB, 1),
    }
    return outcome


def join_and_leave(port: int, round_: int, members: int, at_peak: threading.Event, go_on: threading.Event) -> None:
    """Each member joins a thousand channels of its own; when all are there, wait; then each leaves them."""
    socks = []
    for i in range(members):
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
    """Read until something was said."""
    heard = b""
    while wanted not in heard:
        some = sock.recv(65_536)
        assert some, heard
        heard += some
