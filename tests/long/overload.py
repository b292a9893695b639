"""More than anybody reads: memory stays within the budget, the counters say who had to go and why, and it recovers.

Publishers write as fast as the server reads, to a channel and to single users; all subscribers read slowly and come
back when they are evicted. Beside them a client that reads everything asks for an answer all the time.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlight.loadtest import procstat
from tests.long.outcome import Outcome
from tests.long.streams import Stream, Tally
from tests.support.raw_client import CLOSE, PING, PONG, RawClient, frame, message, request, set_reset
from tests.support.server_process import ServerProcess, server_process

SECONDS = 60.0
BUDGET_BYTES = 32 << 20
OUTBOX_MESSAGES = 5_000
"""So many that it is the budget that is passed: at the default of 256 most go for that, and all hold 15 MiB."""
SUBSCRIBERS = 150
PUBLISHERS = 3
READ_BYTES_PER_S = 40_000
SAMPLE_S = 0.1
TURN_BYTES = 2 << 20
"""What a turn may append before the budget is looked at: a flush is forced at 1 MiB, and one message more."""
OTHER_BYTES = 24 << 20
"""Memory that isn't outboxes: clients, what publishers' connections read, the allocator's own."""
RECOVERY_S = 1.0
ANSWER_S = 0.1
CHANNEL = "flood"


class Publisher(threading.Thread):
    """Writes the same messages over and over, without asking for answers; errors it reads and forgets."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(daemon=True)
        self.is_stopping = False
        self.sent_bytes = 0
        self.error: BaseException | None = None
        users = [f"s{n}" for n in range(number, SUBSCRIBERS, PUBLISHERS)]
        directs = [message("direct", to=user, data="d" * 4_000) for user in users]
        publications = [message("publish", channel=CHANNEL, data="p" * 1_000)] * (len(users) // 10)
        self._blob = b"".join(directs + publications)
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        self._sock.sendall(request() + message("login", user=f"publisher{number}"))

    def run(self) -> None:
        """Until told to stop; then the connection is cut, with whatever was not read yet."""
        try:
            while not self.is_stopping:
                self._sock.sendall(self._blob)
                self.sent_bytes += len(self._blob)
                while select.select([self._sock], [], [], 0)[0] and self._sock.recv(1 << 16):
                    pass
        except OSError as error:
            self.error = error
        set_reset(self._sock)
        self._sock.close()


class Subscriber:
    """Reads slowly, and at once whatever there is when the overload is over."""

    def __init__(self, port: int, name: str, tally: Tally) -> None:
        self.port, self.name, self.tally = port, name, tally
        self.is_hurrying = False
        self.is_stopping = False

    async def live(self) -> None:
        """One life after the other."""
        while not self.is_stopping:
            try:
                client = await RawClient.upgraded(self.port, receive_buffer_bytes=4_096)
            except (OSError, AssertionError, TimeoutError) as error:
                self.tally.failures[type(error).__name__] += 1
                await asyncio.sleep(0.1)
                continue
            try:
                await self._read(client)
            finally:
                client.close()

    async def _read(self, client: RawClient) -> None:
        stream = Stream(self.name, self.tally)
        with suppress(OSError, TimeoutError):
            await client.send(message("login", user=self.name) + message("join", channel=CHANNEL))
        stream.feed(client.rest)
        self.tally.lives += 1
        while not self.is_stopping:
            try:
                data = await client.loop.sock_recv(client.sock, 1 << 16 if self.is_hurrying else READ_BYTES_PER_S // 10)
            except OSError:
                stream.end("reset")
                return
            if not data:
                stream.end("eof")
                return
            stream.feed(data)
            if not self.is_hurrying:
                await asyncio.sleep(0.1)
        stream.end("left")


@dataclass
class Watch:
    """What was seen of the server, every tenth of a second, and how long answers took."""

    server: ServerProcess
    first: dict[str, Any]
    rss_bytes: int
    most: Counter[str] = field(default_factory=Counter)
    answers_s: list[float] = field(default_factory=list)
    is_over: bool = False

    async def sample(self) -> None:
        """Until `is_over`; not to be cancelled, as an answer may be on its way."""
        while not self.is_over:
            now = await self.server.ask("core")
            self.most["chunk_bytes"] = max(self.most["chunk_bytes"], now["chunk_bytes"])
            self.most["outbox_bytes"] = max(self.most["outbox_bytes"], now["outbox_bytes"])
            self.most["rss_bytes"] = max(self.most["rss_bytes"], procstat.usage([self.server.pid]).rss_bytes)
            self.most["samples"] += 1
            await asyncio.sleep(SAMPLE_S)

    async def ask(self, port: int) -> None:
        """A client that does nothing wrong, until cancelled. Raises if it is hurt."""
        client = await RawClient.login(port, "healthy")
        try:
            while True:
                await asyncio.sleep(0.05)
                began_s = time.monotonic()
                await client.say("direct", to="healthy", data=1, id=1)
                await answer(client)
                self.answers_s.append(time.monotonic() - began_s)
        finally:
            client.close()


async def answer(client: RawClient) -> None:
    """The next reply; pings are answered meanwhile."""
    while True:
        opcode, payload = await client.next_frame()
        if opcode == PING:
            await client.send(frame(PONG, payload))
        elif opcode == CLOSE:
            raise EOFError(f"closed with {payload!r}")
        elif b'"ok"' in payload:
            return


async def run(
    seconds: float = SECONDS, budget_bytes: int = BUDGET_BYTES, subscribers: int = SUBSCRIBERS, seed: int = 1
) -> Outcome:
    """The whole course: calm, overload, recovery."""
    outcome = Outcome("overload")
    began_s = time.monotonic()
    async with server_process(memory_budget_bytes=budget_bytes, outbox_messages=OUTBOX_MESSAGES) as server:
        tally = Tally()
        readers = [Subscriber(server.port, f"s{n}", tally) for n in range(subscribers)]
        reading = [asyncio.create_task(reader.live()) for reader in readers]
        await server.until(memberships=2 * subscribers, timeout_s=30)
        watch = Watch(server, await server.ask("core"), procstat.usage([server.pid]).rss_bytes)
        tasks = [asyncio.create_task(watch.sample()), asyncio.create_task(watch.ask(server.port))]
        publishers = [Publisher(server.port, n) for n in range(PUBLISHERS)]
        for publisher in publishers:
            publisher.start()
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        watch.is_over = True
        await tasks[0]
        for reader in readers:
            reader.is_hurrying = True
        for publisher in publishers:
            publisher.is_stopping = True
        recovery_s = await recover(watch, time.monotonic())
        after = await server.ask("core")
        outcome.require(not tasks[1].done(), f"the client that did nothing wrong was hurt: {tasks[1]!r}")
        for reader in readers:
            reader.is_stopping = True
        for task in (*tasks, *reading):
            task.cancel()
        await asyncio.wait([*tasks, *reading])
        for publisher in publishers:
            await asyncio.get_running_loop().run_in_executor(None, publisher.join, 20)
        end = await server.until(connections=0, timeout_s=30)
    outcome.seconds = time.monotonic() - began_s
    judge(outcome, watch, tally, after, end, recovery_s, budget_bytes)
    outcome.figures["MiB a second written by publishers"] = sum(one.sent_bytes for one in publishers) / 2**20 / seconds
    return outcome


async def recover(watch: Watch, from_s: float) -> float:
    """Seconds until nothing waits any more and the healthy client gets its answers at once; 10 if it takes longer."""
    while (now_s := time.monotonic() - from_s) < 10:
        status = await watch.server.ask("core")
        quick = bool(watch.answers_s) and watch.answers_s[-1] < ANSWER_S
        if quick and not status["full"] and not status["outbox_bytes"]:
            return now_s
        await asyncio.sleep(0.02)
    return 10.0


def judge(
    outcome: Outcome,
    watch: Watch,
    tally: Tally,
    after: dict[str, Any],
    end: dict[str, Any],
    recovery_s: float,
    budget_bytes: int,
) -> None:
    """What was promised, and the figures."""
    reasons = {name: after[f"evicted_{name}_total"] for name in ("slow", "budget", "timeout")}
    seen = sum(count for place, count in tally.ends.items() if place.startswith(("close 4008", "close 4009", "reset")))
    grown_bytes = watch.most["rss_bytes"] - watch.rss_bytes
    most_chunks = watch.most["chunk_bytes"]
    outcome.faults += tally.faults
    outcome.require(most_chunks <= budget_bytes + TURN_BYTES, f"outboxes held {most_chunks:,} bytes")
    outcome.require(grown_bytes <= budget_bytes + OTHER_BYTES, f"the process grew by {grown_bytes:,} bytes")
    outcome.expect(sum(reasons.values()) > 0, "nobody was evicted")
    for name, count in reasons.items():
        dropped = after[f"dropped_{name}_messages_total"]
        outcome.require(bool(count) or not dropped, f"{dropped:,} messages were dropped and nobody evicted: {name}")
    outcome.require(abs(sum(reasons.values()) - seen) <= SUBSCRIBERS, f"{reasons} evicted, {seen} noticed it")
    outcome.expect(recovery_s <= RECOVERY_S, f"it took {recovery_s:.1f} s to recover")
    outcome.require(end["live"] == 0 and not end["log"], f"left behind {end['live']}, logged {end['log']}")
    answers_ms = sorted(1_000 * answer_s for answer_s in watch.answers_s)
    outcome.figures = {
        "budget MiB": budget_bytes / 2**20,
        "most MiB in outboxes": most_chunks / 2**20,
        "resident MiB before": watch.rss_bytes / 2**20,
        "most resident MiB": watch.most["rss_bytes"] / 2**20,
        "samples": watch.most["samples"],
        "evicted": reasons,
        "messages they never got": sum(after[f"dropped_{name}_messages_total"] for name in reasons),
        "seen by clients": seen,
        "healthy client's answers": len(answers_ms),
        "their p99 ms": answers_ms[int(0.99 * (len(answers_ms) - 1))] if answers_ms else 0.0,
        "recovered after s": round(recovery_s, 2),
    }
