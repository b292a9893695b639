"""A small WebSocket server for the tests of the load harness, with planted faults.

Run as a script; it prints `listening <port>`. It speaks some of starlight.v1, plain echo and broadcast. What a
connection gets depends on its path, so one process serves all tests:

    /NAME?mode=native|broadcast|others|echo&fault=loss|duplicate|swap|wrong|damage&at=N&refuse=login|upgrade&close=N&merge=1

Connections with the same path and query are one world with its own users and channels. A fault is planted exactly once,
at the N-th delivery of its world. `close=N` closes a connection after its N-th message. `merge=1` collects
texts for 5 ms and sends them as lines of one frame. All else is written synchronously, so a leave holds at once.
"""

from __future__ import annotations

import asyncio
import http
import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import Request, Response, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed


class World:
    """All connections of one path."""

    def __init__(self, options: dict[str, str]) -> None:
        self.mode = options.get("mode", "native")
        self.fault = options.get("fault", "")
        self.at = int(options.get("at", "0"))
        self.close_after = int(options.get("close", "0"))
        self.refuse = options.get("refuse", "")
        self.everyone: list[ServerConnection] = []
        self.users: dict[str, ServerConnection] = {}
        self.channels: dict[str, list[ServerConnection]] = {}
        self.deliveries = 0
        self.merge = bool(options.get("merge"))
        self.lines: dict[ServerConnection, list[str]] = {}
        self.held: tuple[ServerConnection, str] | None = None

    def deliver(self, receivers: list[ServerConnection], text: str) -> int:
        """Send a publication to each; plant the fault when its turn comes."""
        for receiver in receivers:
            self.deliveries += 1
            if self.fault and self.deliveries == self.at:
                self.plant(receiver, text, receivers)
                continue
            if self.merge:
                self.collect(receiver, text)
                continue
            broadcast([receiver], text)
            if self.held and self.held[0] is receiver:
                broadcast([receiver], self.held[1])
                self.held = None
        return len(receivers)

    def collect(self, receiver: ServerConnection, text: str) -> None:
        if receiver not in self.lines:
            asyncio.get_running_loop().call_later(0.005, self.send_lines, receiver)
        self.lines.setdefault(receiver, []).append(text)

    def send_lines(self, receiver: ServerConnection) -> None:
        broadcast([receiver], "\n".join(self.lines.pop(receiver)))

    def plant(self, receiver: ServerConnection, text: str, receivers: list[ServerConnection]) -> None:
        if self.fault == "duplicate":
            broadcast([receiver], text)
            broadcast([receiver], text)
        elif self.fault == "swap":
            self.held = (receiver, text)
        elif self.fault == "wrong":
            broadcast([receiver], text)
            broadcast([next(other for other in self.everyone if other not in receivers)], text)
        elif self.fault == "damage":
            at = text.index("~") - 3
            broadcast([receiver], text[:at] + ("x" if text[at] != "x" else "y") + text[at + 1 :])

    def take(self, connection: ServerConnection, user: str, text: str) -> None:
        """One message of a logged-in connection."""
        if self.mode == "echo":
            self.deliver([connection], text)
        elif self.mode in ("broadcast", "others"):
            self.deliver([one for one in self.everyone if self.mode == "broadcast" or one is not connection], text)
        else:
            self.command(connection, user, json.loads(text))

    def command(self, connection: ServerConnection, user: str, message: dict[str, Any]) -> None:
        channel = message.get("channel", "")
        members = self.channels.setdefault(channel, []) if channel else []
        push: dict[str, Any] = {"from": user, "data": message.get("data")}
        if message["type"] == "join":
            members.append(connection)
        elif message["type"] == "leave":
            members.remove(connection)
        elif message["type"] == "publish":
            self.deliver(members, _text({"type": "publication", "channel": channel, **push}))
        elif message["type"] == "direct":
            self.deliver([self.users[message["to"]]], _text({"type": "direct", **push}))
        elif message["type"] == "broadcast":
            self.deliver(self.everyone, _text({"type": "broadcast", **push}))
        if "id" in message:
            broadcast([connection], _text({"type": "ok", "id": message["id"]}))

    def forget(self, connection: ServerConnection, user: str) -> None:
        for group in (self.everyone, *self.channels.values()):
            if connection in group:
                group.remove(connection)
        if self.users.get(user) is connection:
            del self.users[user]


def _text(message: dict[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"))


worlds: dict[str, World] = {}


def world_of(path: str) -> World:
    return worlds.setdefault(path, World(dict(parse_qsl(urlsplit(path).query))))


async def serve_one(connection: ServerConnection) -> None:
    assert connection.request is not None
    world = world_of(connection.request.path)
    user = ""
    try:
        if world.mode == "native":
            login = json.loads(await connection.recv())
            if world.refuse == "login":
                await connection.close(4500, "invalid token")
                return
            user = str(login["user"])
            world.users[user] = connection
            broadcast([connection], _text({"type": "welcome", "user": user}))
        world.everyone.append(connection)
        count = 0
        async for text in connection:
            world.take(connection, user, str(text))
            count += 1
            if count == world.close_after:
                await connection.close(1011, "planted")
    except ConnectionClosed:
        pass
    finally:
        world.forget(connection, user)


def refuse(connection: ServerConnection, request: Request) -> Response | None:
    if world_of(request.path).refuse == "upgrade":
        return connection.respond(http.HTTPStatus.FORBIDDEN, "no\n")
    return None


async def main() -> None:
    async with serve(
        serve_one, "127.0.0.1", 0, compression=None, process_request=refuse, max_size=1 << 20, ping_interval=None
    ) as server:
        print("listening", next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
