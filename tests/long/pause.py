"""A node that stands still, as when its machine is suspended or swaps: nobody is evicted for what it slept through.

It is stopped (SIGSTOP) for longer than each of its deadlines, while clients are in every state that has one: some owe
the rest of a request, the login, a pong, the rest of a message, or don't read what they are owed. A witness goes on
publishing all the time. When the node goes on, all of them do what they owed, and later one of them stays silent: that
one has to go as ever.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from typing import Any

from tests.long.outcome import Outcome
from tests.support.raw_client import CLOSE, PING, PONG, TEXT, RawClient, frame, message, request
from tests.support.server_process import ServerProcess, server_process
from tests.support.witness import witness

SECONDS = 30.0
CLIENTS = 500
DEADLINE_S = 2.0
"""Of the handshake, the login, pongs and writes."""
MESSAGE_RATE = 200
"""Twice what the witness sends. What it sent in the meantime is still far more than the burst that is let through."""
OWED = [{"type": "direct", "from": "owed", "data": f"{number}" * 10_000} for number in range(9)]


class Life:
    """A client from some moment on: answers pings and keeps what it hears. `end` is how it was closed, if it was."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.heard: list[dict[str, Any]] = []
        self.end = ""
        self.is_silent = False
        self._living = asyncio.create_task(self._live())

    async def _live(self) -> None:
        with suppress(asyncio.CancelledError):
            try:
                while True:
                    await self._next()
            except (OSError, EOFError) as error:
                self.end = self.end or repr(error)

    async def _next(self) -> None:
        try:
            opcode, payload = await self.client.next_frame()
        except TimeoutError:  # nothing to hear is nothing wrong
            return
        if opcode == PING and not self.is_silent:
            await self.client.send(frame(PONG, payload))
        elif opcode == CLOSE:
            self.end = f"closed with {int.from_bytes(payload[:2], 'big')}"
        elif opcode == TEXT:
            self.heard.append(json.loads(payload))

    async def hears(self, wanted: list[dict[str, Any]], within_s: float) -> bool:
        """Whether it hears these, and nothing else before them."""
        deadline_s = time.monotonic() + within_s
        while len(self.heard) < len(wanted) and not self.end and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        return self.heard[: len(wanted)] == wanted

    async def over(self) -> None:
        """Close it."""
        self._living.cancel()
        await asyncio.wait([self._living])
        self.client.close()


async def run(seconds: float = SECONDS, clients: int = CLIENTS) -> Outcome:
    """The whole course."""
    outcome = Outcome("pause")
    began_s = time.monotonic()
    deadlines = dict.fromkeys(
        ("handshake_timeout_s", "login_timeout_s", "pong_timeout_s", "write_timeout_s"), DEADLINE_S
    )
    async with server_process(
        ping_interval_s=1, message_rate=MESSAGE_RATE, send_buffer_bytes=4_096, **deadlines
    ) as server:
        async with witness(server.port, timeout_s=30) as beside:
            lives = [Life(await RawClient.login(server.port, f"u{number}")) for number in range(clients)]
            told_before = beside.told
            behind = await stop(server, seconds, lives)
            told_meanwhile = beside.told - told_before
            await judge(outcome, lives, behind)
            status = await server.ask("status")
            outcome.require(status["connections"] == clients + 5, f"{clients + 5 - status['connections']} are gone")
            ends = {name: count for name, count in status.items() if name.startswith(("closed_", "evicted_")) and count}
            outcome.require(not ends, f"the node ended some: {ends}")
            outcome.require(await is_removed(lives[0]), "nobody who stays silent is removed any more")
            for life in lives:
                await life.over()
        end = await server.until(connections=0, timeout_s=30)
    outcome.require(end["live"] == 0 and not end["log"], f"left behind {end['live']}, logged {end['log']}")
    outcome.seconds = time.monotonic() - began_s
    outcome.figures = {
        "stopped for s": seconds,
        "clients": clients,
        "deadlines s": DEADLINE_S,
        "evicted or closed": len([life for life in lives if life.end]) - 1,
        "messages sent to it meanwhile": told_meanwhile,
        "witness heard": len(beside.heard),
    }
    return outcome


async def stop(
    server: ServerProcess, seconds: float, lives: list[Life]
) -> list[tuple[str, Life, list[dict[str, Any]]]]:
    """Stop the node while some owe it something, and let them do that when it goes on.

    Returns what they owed, who they are, and what they are to hear.
    """
    half = await RawClient.connect(server.port)
    await half.send(request()[:40])
    stranger = await RawClient.upgraded(server.port)
    talking = await RawClient.login(server.port, "talking")
    await talking.send(message("ping", id=1)[:15])
    owed = await RawClient.login(server.port, "owed", receive_buffer_bytes=4_096)
    await owed.send(b"".join(message("direct", to="owed", data=told["data"]) for told in OWED))
    await server.until(full=1)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    await half.send(request()[40:])
    assert (await half.head()).startswith(b"HTTP/1.1 101 ")
    await asyncio.gather(*(client.send(message("login", user="late")) for client in (half, stranger)))
    await talking.send(message("ping", id=1)[15:])
    made = [("request", half, []), ("login", stranger, []), ("message", talking, [{"type": "pong", "id": 1}])]
    behind = [(state, Life(client), wanted) for state, client, wanted in [*made, ("outbox", owed, OWED)]]
    lives += [life for _, life, _ in behind]
    return behind


async def judge(outcome: Outcome, lives: list[Life], behind: list[tuple[str, Life, list[dict[str, Any]]]]) -> None:
    """Everybody is there, and got what it was to get."""
    for state, life, wanted in behind:
        if wanted:
            outcome.require(
                await life.hears(wanted, 20), f"who owed the {state} heard {str(life.heard)[:200]}, {life.end}"
            )
        else:
            await life.hears([{}], 20)
            outcome.require(
                bool(life.heard) and life.heard[0]["type"] == "welcome", f"{state}: {life.heard}, {life.end}"
            )
    await asyncio.sleep(1.5)  # a round of pings
    ends = [life.end for life in lives if life.end]
    outcome.require(not ends, f"{len(ends)} were ended: {ends[:5]}")


async def is_removed(life: Life) -> bool:
    """Whether a client that answers no ping any more is ended with 4012."""
    life.is_silent = True
    deadline_s = time.monotonic() + 30
    while not life.end and time.monotonic() < deadline_s:
        await asyncio.sleep(0.05)
    return life.end == "closed with 4012"
