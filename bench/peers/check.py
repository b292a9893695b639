"""Start every server of the comparison and see that it does its work: three clients, a broadcast, directs, a channel.

Usage: python bench/peers/check.py [name ...]     (all servers but Starlight if none is named)

It needs the ``websockets`` package. It ends with exit code 1 if a server did something wrong; one that can't be
installed is skipped by name.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import servers
from harness.servers import CHANNELS, DIRECT, SERVERS, CannotStart, Running, Server
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

TIMEOUT_S = 5.0
CLIENTS = 3
BURST = 40
LIFTED = ("--read-limit", "256KiB")
"""Starlight refuses messages over 64 KiB by default."""
PAYLOADS = (16, 128, 1024, 65536)


class Member:
    """A connected client that reads whole messages, whatever frames they come in."""

    def __init__(self, connection: ClientConnection, server: Server) -> None:
        self.connection = connection
        self.server = server
        self.waiting: list[str] = []

    async def send(self, text: str) -> None:
        if self.server.talks == "socketio":
            text = "42" + json.dumps(["message", text])
        if self.server.talks == "nats":
            await self.connection.send(f"PUB everyone {len(text)}\r\n{text}\r\n".encode())
        else:
            await self.connection.send(text)

    async def receive(self) -> str:
        """Return the next message; raises TimeoutError after 5 s."""
        while not self.waiting:
            self.waiting.extend(self.split(await asyncio.wait_for(self.connection.recv(), TIMEOUT_S)))
        return self.waiting.pop(0)

    def split(self, frame: str | bytes) -> list[str]:
        if isinstance(frame, bytes):
            return nats_messages(frame)
        if self.server.talks == "socketio":
            return [json.loads(frame[2:])[1]]
        return frame.split("\n") if self.server.talks == "lines" else [frame]


def nats_messages(frame: bytes) -> list[str]:
    """Return the payloads of the MSG lines in a frame (which never ends inside one in this small check)."""
    messages = []
    while frame:
        line, _, frame = frame.partition(b"\r\n")
        if line.startswith(b"MSG"):
            length = int(line.split()[-1])
            messages.append(frame[:length].decode())
            frame = frame[length + 2 :]
    return messages


async def enter(member: Member, user: str) -> None:
    """Do what the server's protocol wants before a client belongs to everyone."""
    talks = member.server.talks
    if talks == "socketio":
        await member.connection.recv()
        await member.connection.send("40")
        await member.connection.recv()
    elif talks == "nats":
        await member.connection.send(b'CONNECT {"verbose":false}\r\nSUB everyone 1\r\nPING\r\n')
        while b"PONG" not in bytes(await member.connection.recv()):  # type: ignore[arg-type]
            pass
    elif DIRECT in member.server.works:
        await member.send(json.dumps({"type": "login", "user": user}, separators=(",", ":")))
        expect("welcome", json.loads(await member.receive())["type"])


async def members_of(server: Running) -> AsyncIterator[list[Member]]:
    members = []
    for number in range(CLIENTS):
        connection = await connect(server.url, compression=None, max_size=1 << 22, proxy=None)
        members.append(Member(connection, server.server))
        await enter(members[-1], f"u{number}")
    await asyncio.sleep(0.05)  # a peer without a welcome may still be adding the last one to its set
    yield members
    for member in members:
        await member.connection.close()


def expect(wanted: object, got: object) -> None:
    if wanted != got:
        raise AssertionError(f"expected {str(wanted)[:80]!r}, got {str(got)[:80]!r}")


def expect_ok(number: int, text: str) -> None:
    reply = json.loads(text)
    expect(("ok", number), (reply["type"], reply["id"]))


def command(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields}, separators=(",", ":"))


async def check_broadcast(members: list[Member]) -> None:
    """A burst and the payload sizes, as commands or as plain text, whatever the generator sends."""
    native = members[0].server.talks in ("native", "lines")
    texts = [f"{number:06d}" for number in range(BURST)] + ["x" * size for size in PAYLOADS]
    for text in texts:
        await members[0].send(command("broadcast", data=text) if native else text)
    for member in members:
        for text in texts:
            got = await member.receive()
            expect(text, json.loads(got)["data"] if native else got)


async def check_direct(members: list[Member]) -> None:
    for number in range(BURST):
        await members[0].send(command("direct", to="u2", data=number))
        await members[2].send(command("direct", to="u0", data=[number]))
    for number in range(BURST):
        for member, sender, data in ((members[2], "u0", number), (members[0], "u2", [number])):
            got = json.loads(await member.receive())
            expect(("direct", sender, data), (got["type"], got["from"], got["data"]))
    await members[0].send(command("direct", id=7, to="u1", data=None))
    expect(None, json.loads(await members[1].receive())["data"])
    expect_ok(7, await members[0].receive())


async def check_channel(members: list[Member]) -> None:
    for number, member in enumerate(members):
        await member.send(command("join", id=number, channel="c"))
        expect_ok(number, await member.receive())
    for number in range(BURST):
        await members[1].send(command("publish", id=number, channel="c", data=number))
    for member in members:
        for number in range(BURST):
            got = json.loads(await next_of(member, "publication"))
            expect(("publication", "c", "u1", number), (got["type"], got["channel"], got["from"], got["data"]))
    members[1].waiting.clear()


async def next_of(member: Member, kind: str) -> str:
    while json.loads(text := await member.receive())["type"] != kind:
        pass
    return text


CHECKS: tuple[tuple[str | None, Callable[[list[Member]], Any]], ...] = (
    (None, check_broadcast),
    (DIRECT, check_direct),
    (CHANNELS, check_channel),
)


async def check(server: Running) -> None:
    async for members in members_of(server):
        for work, run in CHECKS:
            if work is None or work in server.server.works:
                await run(members)


def main(names: list[str]) -> int:
    failed = 0
    for name in names or [name for name in SERVERS if name != "starlight"]:
        reason = SERVERS[name].prepare()
        if reason:
            print(f"{name:14} skipped: {reason}")
            continue
        try:
            with servers.running(SERVERS[name], 65536, extra=LIFTED if name == "starlight" else ()) as started:
                asyncio.run(check(started))
            print(f"{name:14} ok")
        except (CannotStart, AssertionError, OSError, KeyError, ValueError, WebSocketException) as error:
            failed += 1
            print(f"{name:14} FAILED: {type(error).__name__}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
