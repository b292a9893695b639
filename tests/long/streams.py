"""Clients beside the engine's: they hear its messages, stall, are evicted, reset and come back; every byte is judged.

A `Stream` judges the bytes of one connection: whole frames of ours, in each of the engine's streams the next number,
every checksum, and how it ends. A `Mute` lives one connection after another that reads for a while and then doesn't. A
`Publisher` publishes through the fault proxy and may be reset at any byte; two `Listener`s hear what became of that.
"""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from starlight.loadtest._engine import read_data
from starlight.loadtest.checker import DeliveryChecker, Event, Verdict
from tests.support.raw_client import CLOSE, PING, PONG, TEXT, RawClient, close_frame, frame, message

SMALL_BUFFER_BYTES = 4_096
MOST_FAULTS = 10
CHANNEL = "proof"
"""Where publishers that may be reset publish."""


@dataclass
class Tally:
    """What all streams of a run came to."""

    ends: Counter[str] = field(default_factory=Counter)
    deliveries: int = 0
    lives: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        """Note what must not be; the first few in words."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(text)


class Stream:
    """The bytes of one connection behind its login."""

    def __init__(self, name: str, tally: Tally) -> None:
        self.name = name
        self.tally = tally
        self.rest = b""
        self.close_code: int | None = None
        self.pings = 0
        self.is_reset = False
        self._next: dict[int, int] = {}

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        if self.close_code is not None:
            self.tally.fault(f"{self.name}: {data[:40]!r} behind the close frame")
            return
        wire = self.rest + data
        at = 0
        while (end := self._frame_end(wire, at)) is not None:
            start, end = end
            self._take(wire[at] & 0x0F, wire[start:end])
            at = end
            if self.close_code is not None and at < len(wire):
                self.tally.fault(f"{self.name}: {wire[at : at + 40]!r} behind the close frame")
                return
        self.rest = wire[at:]

    def _frame_end(self, wire: bytes, at: int) -> tuple[int, int] | None:
        """Where the payload of the frame at `at` begins and ends; None if it isn't whole."""
        if len(wire) - at < 2:
            return None
        if wire[at] not in (0x80 | TEXT, 0x80 | CLOSE, 0x80 | PING, 0x80 | PONG) or wire[at + 1] & 0x80:
            self.tally.fault(f"{self.name}: no frame of ours: {wire[at : at + 20]!r}")
            return None
        size, start = wire[at + 1], at + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(wire) < start + width:
                return None
            size, start = int.from_bytes(wire[start : start + width], "big"), start + width
        return (start, start + size) if start + size <= len(wire) else None

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
        elif opcode == PING:
            self.pings += 1
        elif opcode == TEXT:
            for line in payload.split(b"\n"):
                self._message(line)

    def _message(self, line: bytes) -> None:
        found = read_data(line)
        if found is None:
            with suppress(ValueError):
                json.loads(line)
                return
            self.tally.fault(f"{self.name}: no message of ours: {line[:60]!r}")
            return
        stream, number, is_whole = found
        self.tally.deliveries += 1
        expected = self._next.get(stream, number)
        if not is_whole or number != expected:
            what = f"number {number} instead of {expected}" if is_whole else "damaged"
            self.tally.fault(f"{self.name}: stream {stream}: {what}: {line[:60]!r}")
        self._next[stream] = number + 1

    def end(self, how: str) -> str:
        """Judge the end ("eof", "reset" or "left" by ourselves): where in the stream it was."""
        if self.close_code is not None:
            place = f"close {self.close_code}"
        elif not self.rest:
            place = f"{how} between frames"
        else:
            place = f"{how} inside a frame"
            if how == "eof":
                self.tally.fault(f"{self.name}: EOF {len(self.rest)} bytes into a frame")
            if self.rest[0] == 0x80 | TEXT and not self.rest[10:].isascii():
                self.tally.fault(f"{self.name}: something stands inside of the last frame: {self.rest[-60:]!r}")
        self.tally.ends[place] += 1
        return place


class Mute:
    """A client that reads for a while and then doesn't, again and again; when it was sent away it comes back.

    Args:
        port: the server's, or a fault proxy's.
        name: its user.
        channels: what it joins.
        chance: when it reads, and how it leaves.
        stall_s: the longest stall; 0: it always reads.
    """

    def __init__(
        self, port: int, name: str, channels: list[str], chance: random.Random, tally: Tally, stall_s: float
    ) -> None:
        self.port, self.name, self.channels = port, name, channels
        self.chance, self.tally, self.stall_s = chance, tally, stall_s
        self.is_stopping = False

    async def live(self) -> None:
        """One life after the other until `is_stopping`."""
        while not self.is_stopping:
            try:
                await self._one_life()
            except (OSError, EOFError, AssertionError, TimeoutError) as error:  # in the login: the proxy cut it
                self.tally.failures[type(error).__name__] += 1
                await asyncio.sleep(0.05)

    async def _one_life(self) -> None:
        small = SMALL_BUFFER_BYTES if self.stall_s else 0
        lines = self.chance.choice(["", "starlight.v1.lines"])
        client = await RawClient.upgraded(self.port, lines, receive_buffer_bytes=small)
        try:
            joins = [message("join", channel=channel) for channel in self.channels]
            await client.send(message("login", user=self.name) + b"".join(joins))
            self.tally.lives += 1
            stream = Stream(self.name, self.tally)
            stream.feed(client.rest)
            how = await self._read_and_stall(client, stream)
            if how == "left" and self.chance.random() < 0.5:
                await client.send(close_frame(1000))
                how = await self._read(client, stream, 5.0) or "left"
            stream.end(how)
        finally:
            client.reset() if self.chance.random() < 0.5 else client.close()

    async def _read_and_stall(self, client: RawClient, stream: Stream) -> str:
        while not self.is_stopping:
            ended = await self._read(client, stream, self.chance.uniform(0.05, 0.8))
            if ended:
                return ended
            await asyncio.sleep(self.chance.uniform(0.1, 1) * self.stall_s)
            if not self.stall_s and self.chance.random() < 0.05:
                return "left"
        return "left"

    async def _read(self, client: RawClient, stream: Stream, seconds: float) -> str:
        """Read for so long: "" if it goes on, or how it ended."""
        end_s = client.loop.time() + seconds
        while (left_s := end_s - client.loop.time()) > 0:
            try:
                if not await is_readable(client, left_s):
                    return ""
                data = client.sock.recv(1 << 16)
            except BlockingIOError:
                continue
            except OSError:
                return "reset"
            if not data:
                return "reset" if stream.is_reset else "eof"
            stream.feed(data)
            for _ in range(stream.pings):
                with suppress(TimeoutError):
                    try:
                        await client.send(frame(PONG))
                    except OSError:  # a reset is told once, to whoever asks first; what was read before is still there
                        stream.is_reset = True
            stream.pings = 0
        return ""


async def is_readable(client: RawClient, within_s: float) -> bool:
    """Whether there is something to read within some time. (A `sock_recv` that is cancelled may take bytes along.)"""
    ready: asyncio.Future[None] = client.loop.create_future()
    client.loop.add_reader(client.sock, lambda: ready.done() or ready.set_result(None))
    try:
        await asyncio.wait([ready], timeout=within_s)
    finally:
        client.loop.remove_reader(client.sock)
    return ready.done()


def data_of(name: str, number: int, size: int) -> str:
    """The data of one of a publisher's messages."""
    return f"{name} {number} " + "x" * size


class Publisher:
    """Publishes with acknowledgements through a proxy that may reset it; each life has a name of its own."""

    def __init__(self, port: int, name: str, chance: random.Random, every_s: float) -> None:
        self.port, self.name, self.chance, self.every_s = port, name, chance, every_s
        self.is_stopping = False
        self.sent: dict[str, list[int]] = {}
        """Of each life the checksum of each message, in the order of sending."""
        self.acked: dict[str, list[int]] = {}
        """Of each life the numbers acknowledged, in the order of arrival."""

    async def live(self) -> None:
        """One life after the other until `is_stopping`."""
        life = 0
        while not self.is_stopping:
            name = f"{self.name}.{life}"
            life += 1
            self.sent[name], self.acked[name] = [], []
            with suppress(OSError, EOFError, AssertionError, TimeoutError):
                client = await RawClient.login(self.port, name)
                try:
                    await self._publish(client, name)
                finally:
                    client.close()
            await asyncio.sleep(0.02)

    async def _publish(self, client: RawClient, name: str) -> None:
        hearing = asyncio.create_task(self._hear(client, name))
        try:
            while not self.is_stopping and not hearing.done():
                data = data_of(name, len(self.sent[name]), self.chance.choice([5, 100, 3_000]))
                self.sent[name].append(zlib.crc32(data.encode()))
                await client.say("publish", channel=CHANNEL, data=data, id=len(self.sent[name]) - 1)
                await asyncio.sleep(self.every_s)
        finally:
            hearing.cancel()
            await asyncio.wait([hearing])
            if not hearing.cancelled():
                hearing.exception()

    async def _hear(self, client: RawClient, name: str) -> None:
        while True:
            heard = await client.hear()
            if heard["type"] == "ok":
                self.acked[name].append(heard["id"])


class Listener:
    """Hears the proof channel on a connection that nobody disturbs."""

    def __init__(self, client: RawClient, name: str) -> None:
        self.client, self.name = client, name
        self.heard: list[tuple[str, int, int]] = []
        self._synced = asyncio.Event()

    @classmethod
    async def join(cls, port: int, name: str) -> Listener:
        """Logged in and joined."""
        client = await RawClient.login(port, name)
        assert (await client.ask("join", channel=CHANNEL))["type"] == "ok"
        return cls(client, name)

    async def listen(self) -> None:
        """Until cancelled; the publications and pongs in the order of arrival."""
        while True:
            opcode, payload = await self._next()
            if opcode == PING:
                await self.client.send(frame(PONG, payload))
            elif opcode == CLOSE:
                raise EOFError(f"{self.name} was closed: {payload!r}")
            else:
                self._take(json.loads(payload))

    async def _next(self) -> tuple[int, bytes]:
        while True:  # nobody may publish for longer than a read may take
            with suppress(TimeoutError):
                return await self.client.next_frame()

    def _take(self, heard: dict[str, object]) -> None:
        if heard["type"] == "publication":
            data = str(heard["data"])
            name, number, _ = data.split(" ", 2)
            self.heard.append((name, int(number), zlib.crc32(data.encode())))
        elif heard["type"] == "pong":
            self._synced.set()

    async def sync(self) -> None:
        """Wait for whatever was published before this call."""
        await self.client.say("ping", id="sync")
        async with asyncio.timeout(20):
            await self._synced.wait()


def judge_publishers(publishers: list[Publisher], listeners: list[Listener]) -> Verdict:
    """C5 and C1 for publishers that were reset: what was acknowledged arrived everywhere, in order, once; a tail
    without an acknowledgement may have arrived, and then at everybody."""
    checker = DeliveryChecker()
    for listener in listeners:
        checker.take(Event("joined", CHANNEL, receiver=listener.name))
    most: Counter[str] = Counter()
    for listener in listeners:
        for name, number, _ in listener.heard:
            most[name] = max(most[name], number + 1)
    for publisher in publishers:
        for name, checksums in publisher.sent.items():
            known = max(most[name], max(publisher.acked[name], default=-1) + 1)
            for number in range(min(known, len(checksums))):
                checker.take(Event("sent", CHANNEL, name, number=number, checksum=checksums[number]))
            for number in publisher.acked[name]:
                checker.take(Event("acked", CHANNEL, name, number=number))
    for listener in listeners:
        for name, number, checksum in listener.heard:
            checker.take(Event("received", CHANNEL, name, listener.name, number, checksum))
    return checker.finish()
