"""A scripted server for the client library, where the point is how a connection ends.

The real node doesn't close with code after code on demand, cut the TCP connection, or stay silent. This one is built on
the `websockets` library and speaks just enough of the protocol: login, join, leave, publish to who joined, ping.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from starlight.close_codes import error_name


class ScriptedServer:
    """Listens on a port of the kernel's choice; may stop and listen on the same port again."""

    def __init__(self) -> None:
        self.port = 0
        self.commands: list[dict[str, Any]] = []  # all that was received, over all connections
        self.opened = 0
        self.close_logins_with: int | None = None
        self.refuse_joins_of: set[str] = set()  # with 103
        self.refuse_joins_once: dict[str, int] = {}  # by channel, with this code, once
        self.answer_joins_with: list[int] = []  # the whole message with an error, one code after the other
        self.refuse_several_with: int | None = None  # a join of several channels as a whole
        self.welcome: dict[str, Any] = {}  # further fields of every welcome
        self.session: str | None = None  # what every welcome says
        self.refuse_tokens: set[str] = set()  # with 4500
        self.is_silent = False
        self.silent_about: set[str] = set()  # types that are not answered
        self._server: Server | None = None
        self._open: set[ServerConnection] = set()
        self._channels: dict[ServerConnection, set[str]] = {}  # of those that have logged in

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def connections(self) -> list[ServerConnection]:
        """Those that are open, logged in or not."""
        return list(self._open)

    @property
    def logged_in(self) -> int:
        """How many are logged in."""
        return len(self._channels)

    @property
    def joined(self) -> set[str]:
        """The channels of all clients."""
        return set().union(*self._channels.values())

    def seen(self, type: str) -> list[dict[str, Any]]:
        """The received commands of one type."""
        return [command for command in self.commands if command["type"] == type]

    async def start(self) -> None:
        self._server = await serve(
            self._talk, "127.0.0.1", self.port, subprotocols=["starlight.v1", "starlight.v1.lines"], ping_interval=None
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self, code: int = 1001) -> None:
        """Close all connections with `code` and listen no more."""
        if self._server is not None:
            self._server.close(code=code)
            await self._server.wait_closed()
            self._server = None

    async def push(self, *messages: dict[str, Any]) -> None:
        """Send messages to every client, in one frame if there are several."""
        frame = "\n".join(json.dumps(message) for message in messages)
        for connection in list(self._channels):
            await connection.send(frame)

    async def close_all(self, code: int, reason: str = "", retry_ms: int | None = None) -> None:
        """Say `bye` and close."""
        for connection in list(self._channels):
            await connection.send(json.dumps({"type": "bye", "code": code, "reason": reason, "retry_ms": retry_ms}))
            await connection.close(code, reason)

    def drop_all(self) -> None:
        """Cut the TCP connections: no close frame."""
        for connection in self.connections:
            connection.transport.abort()

    async def _talk(self, connection: ServerConnection) -> None:
        self.opened += 1
        self._open.add(connection)
        try:
            async for frame in connection:
                for line in str(frame).split("\n"):
                    await self._handle(connection, json.loads(line))
        except ConnectionClosed:
            pass
        finally:
            self._channels.pop(connection, None)
            self._open.discard(connection)

    async def _handle(self, connection: ServerConnection, command: dict[str, Any]) -> None:
        self.commands.append(command)
        kind, channel, reply = command["type"], command.get("channel", ""), {"type": "ok", "id": command.get("id")}
        if self.is_silent or kind in self.silent_about:
            return None
        if kind == "login":
            if self.close_logins_with is not None:
                return await connection.close(self.close_logins_with, "as scripted")
            if command.get("token") in self.refuse_tokens:
                return await connection.close(4500, "as scripted")
            self._channels[connection] = set()
            reply |= {"type": "welcome", "user": command.get("user") or "token", "client": f"c{self.opened}"}
            reply |= {"session": self.session, **self.welcome}
        elif kind == "join" and self.answer_joins_with:
            code = self.answer_joins_with.pop(0)
            reply |= {"type": "error", "code": code, "name": error_name(code), "message": "as scripted"}
        elif kind == "join" and "channels" in command and self.refuse_several_with is not None:
            reply |= {"type": "error", "code": self.refuse_several_with, "name": "no", "message": "as scripted"}
        elif kind == "join" and "channels" in command:
            reply["channels"] = [self._join(connection, item["channel"]) for item in command["channels"]]
        elif kind == "join":
            error = self._join(connection, channel).get("error")
            if error is not None:
                reply |= {"type": "error", **error}
        elif kind == "leave":
            self._channels[connection].discard(channel)
        elif kind == "publish":
            publication = {"type": "publication", "channel": channel, "from": "someone", "data": command["data"]}
            for other, channels in list(self._channels.items()):
                if channel in channels:
                    await other.send(json.dumps(publication))
        elif kind == "ping":
            reply["type"] = "pong"
        if "id" in command or kind == "ping":
            await connection.send(json.dumps(reply))
        return None

    def _join(self, connection: ServerConnection, channel: str) -> dict[str, Any]:
        """What a join of several channels says about one."""
        code = 103 if channel in self.refuse_joins_of else self.refuse_joins_once.pop(channel, None)
        if code is None:
            self._channels[connection].add(channel)
            return {"channel": channel}
        return {"channel": channel, "error": {"code": code, "name": error_name(code), "message": "not here"}}

    async def push_text(self, *frames: str | bytes) -> None:
        """Send frames as they are to every client; bytes go out as text, too."""
        for connection in list(self._channels):
            for frame in frames:
                await connection.send(frame, text=True)


@asynccontextmanager
async def scripted_server() -> AsyncIterator[ScriptedServer]:
    """A running `ScriptedServer`, stopped at the end."""
    server = ScriptedServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
