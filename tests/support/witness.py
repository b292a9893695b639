"""A client beside a fault in a node that has a process of its own: it must miss nothing and hear nothing else."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.fakes import eventually

CHANNEL = "witness"
EVERY_S = 0.01


class Witness:
    """Publishes numbers to a channel that it has joined. Pings are answered by the `websockets` library.

    Attributes:
        told: how many numbers were published.
        heard: those that came back.
        strays: all else that came.
        end: how the connection ended, if it did.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.told = 0
        self.heard: list[Any] = []
        self.strays: list[dict[str, Any]] = []
        self.end: ConnectionClosed | None = None
        self._socket = socket

    async def tell(self) -> None:
        """Until cancelled, or until the connection ends."""
        while self.end is None:
            await self._socket.send(json.dumps({"type": "publish", "channel": CHANNEL, "data": self.told}))
            self.told += 1
            await asyncio.sleep(EVERY_S)

    async def listen(self) -> None:
        """Until the connection ends."""
        try:
            async for text in self._socket:
                told = json.loads(text)
                if told["type"] == "publication":
                    self.heard.append(told["data"])
                else:
                    self.strays.append(told)
        except ConnectionClosed as end:
            self.end = end

    def has_heard_all(self) -> bool:
        """Whether everything came back, or nothing more will."""
        return len(self.heard) >= self.told or self.end is not None


def url_of(port: int) -> str:
    """The address of a node on the wire of the test."""
    return f"{'wss' if 'STARLIGHT_TLS_CERT' in os.environ else 'ws'}://127.0.0.1:{port}/ws"


@asynccontextmanager
async def witness(port: int, timeout_s: float = 10.0, **login: Any) -> AsyncIterator[Witness]:
    """A witness of a node, judged in the end.

    Args:
        port: the node's.
        timeout_s: how long it may wait then for what is under way.
        login: the fields of its login where a user's name is not enough.
    """
    async with connect(url_of(port), compression=None, ping_interval=None, close_timeout=2) as socket:
        await socket.send(json.dumps({"type": "login", **(login or {"user": "witness"})}))
        assert json.loads(await asyncio.wait_for(socket.recv(), timeout_s))["type"] == "welcome"
        await socket.send(json.dumps({"type": "join", "channel": CHANNEL}))
        here = Witness(socket)
        listening, telling = asyncio.create_task(here.listen()), asyncio.create_task(here.tell())
        try:
            yield here
            telling.cancel()
            with suppress(AssertionError):  # what follows says more
                await eventually(here.has_heard_all, timeout_s)
            assert here.end is None, f"the witness was hurt: {here.end!r}"
            assert not here.strays, f"it reached the witness: {here.strays[:10]}"
            assert here.heard == list(range(here.told)), "the witness missed something"
        finally:
            telling.cancel()
            listening.cancel()
            await asyncio.wait([telling, listening])
