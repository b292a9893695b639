"""A client for end-to-end tests on the `websockets` library, which no one here wrote."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

HEAR_TIMEOUT_S = 10.0


class WireClient:
    """One connection; every wait is bounded."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    @classmethod
    async def login(cls, url: str, user: str, **fields: Any) -> WireClient:
        """Connect, log in, and take the welcome. It reads all the time, or closing it could take ten seconds."""
        client = cls(await connect(url, compression=None, max_queue=None))
        await client.say("login", user=user, **fields)
        welcome = await client.hear()
        assert welcome["type"] == "welcome", welcome
        return client

    async def say(self, type: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": type, **fields}))

    async def hear(self) -> dict[str, Any]:
        """The next message."""
        async with asyncio.timeout(HEAR_TIMEOUT_S):  # not wait_for, which loses cancellations in Python 3.11
            message: dict[str, Any] = json.loads(await self.socket.recv())
        return message

    async def hear_until(self, type: str) -> list[dict[str, Any]]:
        """Messages up to and including the first of `type`; at most 10,000."""
        heard: list[dict[str, Any]] = []
        for _ in range(10_000):
            heard.append(await self.hear())
            if heard[-1]["type"] == type:
                return heard
        raise AssertionError(f"no {type} in 10,000 messages")

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return its reply; whatever comes before it is dropped."""
        await self.say(type, id="ask", **fields)
        for _ in range(10_000):
            message = await self.hear()
            if message.get("id") == "ask":
                return message
        raise AssertionError("no reply in 10,000 messages")

    async def closed(self) -> tuple[int, str]:
        """Read to the end; the close code and reason that came from the server."""
        try:
            for _ in range(10_000):
                await self.hear()
        except ConnectionClosed as end:
            assert end.rcvd is not None, "no close frame"
            return end.rcvd.code, end.rcvd.reason
        raise AssertionError("10,000 messages and no end")

    async def close(self) -> None:
        await self.socket.close()
