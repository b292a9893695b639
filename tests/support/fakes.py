"""What several test modules share: reading wire frames, and clients of a hub over socket pairs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from starlight._fanout import FRAMES, Core, Subscriber
from starlight.channels.client import Client
from starlight.channels.hub import Hub
from starlight.ends import Cause
from starlight.errors import CloseConnection
from starlight.protocols.spoken import NATIVE

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
READ_BYTES = 1 << 20

EVICTION_CODES = {"slow": 4008, "timeout": 4009, "budget": 4008}
"""What the core's reasons become in the native protocol."""

IS_SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
"""AddressSanitizer keeps what is freed, and takes two or three times as long: no test judges memory or time then."""

needs_speed = pytest.mark.skipif(IS_SANITIZED, reason="plays both sides within a second; a sanitizer build can't")


def split_frames(wire: bytes) -> Iterator[tuple[int, bytes]]:
    """The (opcode, payload) of every whole, unmasked frame in a server's bytes. Anything else fails the test."""
    at = 0
    while at < len(wire):
        first, second = wire[at], wire[at + 1]
        assert first & 0x80, "a fragment"
        assert not first & 0x70, "a reserved bit"
        assert not second & 0x80, "a server must not mask"
        size, at = second, at + 2
        if size == 126:
            size, at = int.from_bytes(wire[at : at + 2], "big"), at + 2
        elif size == 127:
            size, at = int.from_bytes(wire[at : at + 8], "big"), at + 8
        assert at + size <= len(wire), "half a frame"
        yield first & 0x0F, wire[at : at + size]
        at += size


class PairConnection:
    """A connection as the hub sees it, over one end of a socket pair: no handshake and no reading, the rest is real."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.setblocking(False)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, READ_BYTES)
        self.subscriber: Subscriber = core.subscriber(self, self.ours.fileno(), None, FRAMES)
        self.peername: tuple[Any, ...] | None = None
        self.subprotocol = "starlight.v1"
        self.codec = NATIVE
        self.is_open = True
        self.closed_with: int | None = None
        self.paused_s = 0.0
        self.probes = 0
        self.silent_ms = 0
        self.client: Client | None = None

    def close(
        self, code: int, reason: str | None = None, retry_ms: int | None = None, cause: Cause | None = None
    ) -> None:
        if self.is_open:
            self.is_open = False
            self.closed_with = code
            end = NATIVE.end(code, reason, retry_ms)
            self.core.send(self.subscriber, end.bye)
            self.core.close(self.subscriber, end.code, end.reason.encode())

    def pause_reading(self, seconds: float) -> None:
        self.paused_s += seconds

    def probe(self) -> None:
        self.probes += 1

    def give_way(self) -> None:
        self.close(4012)

    def on_login(self, client: Client) -> None:
        self.client = client

    def on_evicted(self, reason: str, messages: int, n_bytes: int, oldest_ms: int) -> None:
        self.is_open = False
        self.closed_with = EVICTION_CODES[reason]
        self.core.evict(self.subscriber, self.closed_with)

    def on_close_sent(self) -> None: ...

    def on_broken(self) -> None:
        self.is_open = False

    def received(self) -> list[tuple[int, bytes]]:
        """The frames that have come to the other end since the last call."""
        self.core.flush()
        wire = bytearray()
        with contextlib.suppress(BlockingIOError):
            while some := self.theirs.recv(READ_BYTES):
                wire += some
        return list(split_frames(bytes(wire)))

    def messages(self) -> list[dict[str, Any]]:
        """The JSON messages among them."""
        return [orjson.loads(payload) for opcode, payload in self.received() if opcode == TEXT]

    def destroy(self) -> None:
        self.is_open = False
        self.core.detach(self.subscriber)
        self.ours.close()
        self.theirs.close()


class Member:
    """A logged-in client of a hub, with the words of the protocol as methods."""

    def __init__(self, hub: Hub, core: Core, user: str) -> None:
        self.hub = hub
        self.connection = PairConnection(core)
        assert hub.login(self.connection, orjson.dumps({"type": "login", "user": user})) is None
        assert self.connection.client is not None
        self.client = self.connection.client
        self.welcome = self.heard()[0]

    def say(self, type: str, **fields: Any) -> Any:
        """Hand a message to the hub; its awaitable, if the application has it now."""
        return self.hub.commands.receive(self.client, orjson.dumps({"type": type, **fields}))

    def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        """Say it with an id and return the last message that came of it: the reply."""
        assert self.say(type, id=1, **fields) is None
        reply = self.heard()[-1]
        assert reply.pop("id") == 1
        return reply

    def heard(self) -> list[dict[str, Any]]:
        return self.connection.messages()

    def close_code(self, type: str, **fields: Any) -> int | None:
        """Say it; the close code if the connection has to end for it."""
        try:
            self.say(type, **fields)
        except CloseConnection as end:
            return end.code
        return None

    def leave_hub(self) -> None:
        """What the connection does when it is gone."""
        self.connection.destroy()
        self.hub.disconnect(self.client)


class Stage:
    """A hub with its core, and members that come on call. The clock stands still until a test moves `now_s`."""

    def __init__(self, **options: Any) -> None:
        self.now_s = 1_000.0
        self.core = Core()
        self.hub = Hub(self.core, clock=lambda: self.now_s, **options)
        self.members: list[Member] = []

    def member(self, user: str) -> Member:
        self.members.append(Member(self.hub, self.core, user))
        return self.members[-1]

    def connection(self) -> PairConnection:
        return PairConnection(self.core)

    def close(self) -> None:
        for member in self.members:
            member.leave_hub()


def is_utf8(text: bytes) -> bool:
    """Whether it can be read as UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


async def eventually(condition: Any, timeout_s: float = 10.0) -> None:
    """Wait until `condition()` holds; fail the test if it never does."""
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline_s, "it never came true"
        await asyncio.sleep(0.005)


def publication(channel: str, user: str | None, data: object) -> dict[str, Any]:
    return {"type": "publication", "channel": channel, "from": user, "data": data}


def error(code: int, name: str) -> dict[str, Any]:
    return {"type": "error", "code": code, "name": name}


def without_text(reply: dict[str, Any]) -> dict[str, Any]:
    assert reply.pop("message")
    return reply
