"""A TCP proxy that does to a connection what networks do: delays, chops, stalls, resets and half-closes, from a seed.

Each direction of each connection has a plan of its own, drawn from the seed, the connection's number and the direction:
the same seed gives the same faults at the same bytes, whatever the timing. `Faults` says how often each of them comes.
A plan without resets and half-closes passes every byte on, in order.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tests.support.raw_client import set_reset

READ_BYTES = 1 << 16
Kind = Literal["pass", "chop", "delay", "stall", "reset", "half-close"]


class Step(NamedTuple):
    """Pass on so many bytes (a chop: one at a time), then wait; a reset or half-close ends the direction instead."""

    kind: Kind
    n_bytes: int
    wait_s: float


@dataclass(frozen=True)
class Faults:
    """Weights of what happens next in a direction, and how long waits are."""

    passes: int = 10
    chops: int = 4
    delays: int = 4
    stalls: int = 1
    resets: int = 0
    half_closes: int = 0
    delay_s: float = 0.005
    stall_s: float = 0.1

    def plan(self, seed: int, connection: int, direction: str) -> random.Random:
        """The chance that one direction's steps are drawn from."""
        return random.Random(f"{seed}/{connection}/{direction}")

    def step(self, chance: random.Random) -> Step:
        """The next step of a direction."""
        weights = [self.passes, self.chops, self.delays, self.stalls, self.resets, self.half_closes]
        kinds: list[Kind] = ["pass", "chop", "delay", "stall", "reset", "half-close"]
        kind = chance.choices(kinds, weights)[0]
        size = chance.choice([1, 2, 7, 100, 1_000, 10_000, 100_000])
        if kind == "chop":
            return Step(kind, min(size, 30), 0.0)
        wait_s = {"delay": self.delay_s, "stall": self.stall_s}.get(kind, 0.0)
        return Step(kind, size, wait_s * chance.uniform(0.5, 1.5))


@dataclass
class FaultProxy:
    """A running proxy. `log` is what was done, as (connection, direction, step)."""

    target_port: int
    faults: Faults
    seed: int
    port: int = 0
    n_connections: int = 0
    log: list[tuple[int, str, Step]] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listening)
            task = loop.create_task(self._connect(client, self.n_connections))
            self.n_connections += 1
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        server = socket.socket()
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await loop.sock_connect(server, ("127.0.0.1", self.target_port))
            async with asyncio.TaskGroup() as pumps:  # the other one is cancelled: it would keep its socket open
                pumps.create_task(self._pump(client, server, number, "up"))
                pumps.create_task(self._pump(server, client, number, "down"))
        except* (OSError, _Reset):  # one end has gone, or we end it: both feel it as a reset
            set_reset(client)
            set_reset(server)
        finally:
            client.close()
            server.close()

    async def _pump(self, source: socket.socket, target: socket.socket, number: int, direction: str) -> None:
        """Carry one direction out until EOF."""
        chance = self.faults.plan(self.seed, number, direction)
        loop = asyncio.get_running_loop()
        while True:
            step = self.faults.step(chance)
            self.log.append((number, direction, step))
            if step.kind == "reset":
                raise _Reset
            if step.kind == "half-close" or not await self._carry(loop, source, target, step):
                target.shutdown(socket.SHUT_WR)
                return
            if step.wait_s:
                await asyncio.sleep(step.wait_s)

    async def _carry(
        self, loop: asyncio.AbstractEventLoop, source: socket.socket, target: socket.socket, step: Step
    ) -> bool:
        """Pass on a step's bytes; False at EOF."""
        left = step.n_bytes
        while left:
            data = await loop.sock_recv(source, 1 if step.kind == "chop" else min(left, READ_BYTES))
            if not data:
                return False
            await loop.sock_sendall(target, data)
            left -= len(data)
        return True

    async def close(self) -> None:
        """End all connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _Reset(Exception):
    """The plan says so."""


@asynccontextmanager
async def fault_proxy(target_port: int, faults: Faults, seed: int) -> AsyncIterator[FaultProxy]:
    """A proxy in front of a port of this machine."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1_000)
    listening.setblocking(False)
    proxy = FaultProxy(target_port, faults, seed, listening.getsockname()[1])
    serving = asyncio.create_task(proxy.serve(listening))
    try:
        yield proxy
    finally:
        serving.cancel()
        await asyncio.wait([serving])
        await proxy.close()
        listening.close()
