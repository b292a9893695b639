"""A node with an internal port, in this process, and an HTTP client for it."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from websockets.asyncio.client import connect

from starlight.config.settings import Settings
from starlight.ops.http import InternalHttp
from starlight.ops.stats import Stats
from starlight.server.node import Node
from tests.support.raw_client import RawClient
from tests.support.wire_client import WireClient

KEY = "a key of forty bytes, as long as wanted."


class Inside:
    """A running node, seen through its internal port."""

    def __init__(self, node: Node, http: aiohttp.ClientSession, stack: AsyncExitStack) -> None:
        self.node = node
        self.http = http
        self._stack = stack
        port = node._internal._http
        assert port is not None
        self.port: InternalHttp = port
        self.stats: Stats = port.stats

    async def login(self, user: str, *channels: str) -> WireClient:
        """A client that has joined these channels."""
        client = await WireClient.login(self.node.url, user)
        self._stack.push_async_callback(client.close)
        for channel in channels:
            assert (await client.ask("join", channel=channel))["type"] == "ok"
        return client

    async def stranger(self) -> WireClient:
        """A connection that has not logged in."""
        client = WireClient(await connect(self.node.url, compression=None))
        self._stack.push_async_callback(client.close)
        return client

    async def stalled(self, user: str, *channels: str) -> RawClient:
        """A client that reads no more from here on, and whose kernel takes little."""
        client = await RawClient.login(self.node.port, user, receive_buffer_bytes=4096)
        self._stack.callback(client.close)
        for channel in channels:
            assert (await client.ask("join", channel=channel))["type"] == "ok"
        return client

    async def get(self, path: str, status: int = 200, **headers: str) -> Any:
        """The JSON of a route, which must answer with this status."""
        async with self.http.get(path, headers=headers) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def post(self, path: str, body: Any, status: int = 200, key: str | None = KEY) -> Any:
        """The JSON that comes of a request, which must be answered with this status. bytes are sent as they are."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        sent = {"data": body} if isinstance(body, bytes | io.BytesIO) else {"json": body}
        async with self.http.post(path, headers=headers, **sent) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def totals(self) -> dict[str, Any]:
        """Those of /varz."""
        totals: dict[str, Any] = (await self.get("/varz"))["totals"]
        return totals


@asynccontextmanager
async def inside(
    tmp_path: Path, *, key: str | None = KEY, channels: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Inside]:
    """A node with an internal port on a port of the kernel's choice; drained at the end."""
    words: dict[str, Any] = {"port": 0, "internal_port": 0, "drain_timeout_s": 5, **settings}
    if key is not None:
        file = tmp_path / "internal.key"
        file.write_text(key + "\n")
        file.chmod(0o600)
        words["internal_key_file"] = str(file)
    async with Node(Settings(**words), channels=channels) as node:
        url = f"http://127.0.0.1:{node.internal_url.rpartition(':')[2]}" if node.internal_url else None
        async with aiohttp.ClientSession(url) as http, AsyncExitStack() as stack:
            yield Inside(node, http, stack)
