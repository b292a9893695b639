"""The read side: a client's bytes, cut anywhere, through a real acceptor over TCP; what comes back against `reference`.

The connections are echoes, so all that a verdict needs is on the wire: messages come back as they were understood,
pings as pongs, and the end is a close frame. Every frame is more than a client's share of a turn (`TURN_WORK`), so that
reading stops behind each read, wherever that ends, and goes on in the next turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import random
import socket
import struct
import termios
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

import uvloop

from starlight._fanout import Core
from starlight.net.connection import Endpoint
from starlight.server.conformance import conformance_settings
from tests.fuzz.engine import Difference, mutate_bytes, smaller_bytes
from tests.fuzz.frames import BINARY, CLOSE, PONG, TEXT, Seen, any_frame, split
from tests.fuzz.reference import Verdict, expect
from tests.support.fakes import split_frames

LIMIT_BYTES = 1024
"""Of a message: small, so that short cases reach it."""
DATA_LIMIT_BYTES = 8 * 1024
TURN_WORK = 100
"""Less than any frame."""
END_LIMIT_S = 5.0
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: fuzz\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@dataclass(frozen=True)
class Case:
    """What a client sends after the handshake.

    data: the bytes. cuts: where a new packet begins. is_glued: whether the first packet is that of the request.
    """

    data: bytes
    cuts: tuple[int, ...] = ()
    is_glued: bool = False

    def packets(self) -> list[bytes]:
        """The bytes as they are sent."""
        ends = sorted({cut for cut in self.cuts if 0 < cut < len(self.data)} | {len(self.data)})
        return [self.data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class Read:
    """The target."""

    name = "read"

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: self.complaints.append(str(context)))
        self.complaints: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.core = Core()
        self.log = logging.getLogger("starlight")
        self.handler = logging.Handler(logging.WARNING)
        self.handler.emit = lambda record: self.complaints.append(record.getMessage())  # type: ignore[method-assign]
        self.handler.addFilter(lambda record: record.name != "starlight.ends")  # that a broken client ended is none
        self.log.addHandler(self.handler)
        self.rng = random.Random(0)
        self.acceptor = self.loop.run_until_complete(self.accepting())

    async def accepting(self) -> Endpoint:
        """An acceptor of echoes on the loop."""
        self.core.bind(self.loop)
        settings = conformance_settings(read_limit_bytes=LIMIT_BYTES)
        acceptor = Endpoint(self.core, None, settings, echoes=True, turn_work=TURN_WORK)
        acceptor.start()
        return acceptor

    def close(self) -> None:
        """Let go of the loop."""
        self.acceptor.stop()
        self.core.unbind()
        self.log.removeHandler(self.handler)
        self.listener.close()
        self.loop.close()

    # ---- one case

    def run(self, case: Case) -> Hashable:
        """Compare the verdicts; the signature is the frames in short, and the end."""
        expected = expect(case.data, LIMIT_BYTES)
        wire = self.loop.run_until_complete(self.talk(case))
        if self.complaints:
            raise Difference(f"logged: {self.complaints.pop()}")
        end = compare(wire, expected)
        shapes = [shape(one) for one in split(case.data)[:5]]
        return (*shapes, end, *sorted(expected.named), min(len(case.cuts), 2), case.is_glued)

    async def talk(self, case: Case) -> bytes:
        """Send the packets one by one, each read before the next; then EOF. What came back, without the handshake."""
        with socket.socket() as client:
            # Its own source address, since a port can't be used again for a minute.
            client.bind((f"127.0.{self.rng.randrange(256)}.{self.rng.randrange(1, 255)}", 0))
            client.connect(self.listener.getsockname())
            client.setblocking(False)
            ours, _ = self.listener.accept()
            await self.loop.connect_accepted_socket(self.acceptor.protocol, ours)
            packets = case.packets()
            packets = [REQUEST + packets[0], *packets[1:]] if case.is_glued else [REQUEST, *packets]
            wire = bytearray()
            for packet in packets:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.send(packet)
                await settled(ours)
                receive(client, wire)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
            await self.ended(client, wire)
        await self.forgotten()
        head, _, rest = bytes(wire).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise Difference(f"no handshake: {head!r}")
        return rest

    async def ended(self, client: socket.socket, wire: bytearray) -> None:
        """Read until EOF."""
        until_s = self.loop.time() + END_LIMIT_S
        while receive(client, wire):
            if self.loop.time() > until_s:
                raise Difference(f"no EOF within {END_LIMIT_S} s of ours; so far {bytes(wire)!r}")
            await asyncio.sleep(0)

    async def forgotten(self) -> None:
        """Nothing is kept of a connection that is gone."""
        until_s = self.loop.time() + END_LIMIT_S
        while self.acceptor.connections:
            if self.loop.time() > until_s:
                raise Difference("the connection is still there")
            await asyncio.sleep(0)
        counters = self.core.counters()
        left = {name: counters[name] for name in ("subscribers", "outbox_bytes", "spans") if counters[name]}
        if left:
            raise Difference(f"left behind: {left}")

    # ---- cases

    def mutate(self, rng: random.Random, case: Case, other: Case) -> Case:
        """Other frames, other bytes, or other packets."""
        kind = rng.randrange(8)
        if kind < 4:
            return replace(case, data=mutate_frames(rng, case.data, other.data)[:DATA_LIMIT_BYTES])
        if kind < 6:
            data = mutate_bytes(rng, case.data, other.data, [b"\0", b"\xff", b"\x80", b"\x7f", b"\x88\x80\0\0\0\0"])
            return replace(case, data=data[:DATA_LIMIT_BYTES])
        if kind == 6:
            return replace(case, is_glued=not case.is_glued)
        size = len(case.data)
        n_cuts = rng.choice((0, 1, 2, 3, 10, size if size <= 300 else 10))
        cuts = range(1, size) if n_cuts == size else (rng.randrange(size + 1) for _ in range(n_cuts))
        return replace(case, cuts=tuple(cuts))

    def smaller(self, case: Case) -> Iterator[Case]:
        """Fewer packets, fewer frames, fewer bytes."""
        if case.cuts:
            yield replace(case, cuts=())
        for i in range(len(case.cuts) if len(case.cuts) <= 20 else 0):
            yield replace(case, cuts=case.cuts[:i] + case.cuts[i + 1 :])
        if case.is_glued:
            yield replace(case, is_glued=False)
        for seen in split(case.data):
            yield replace(case, data=case.data[: seen.start] + case.data[seen.end :])
        for data in smaller_bytes(case.data):
            yield replace(case, data=data)

    def read(self, text: str) -> Case:
        """Lines: comments, perhaps ``glued``, and the packets in hexadecimal."""
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        packets = [bytes.fromhex(line) for line in lines if line not in ("", "glued")]
        ends = [sum(map(len, packets[:i])) for i in range(1, len(packets))]
        return Case(b"".join(packets), tuple(ends), "glued" in lines)

    def write(self, case: Case) -> str:
        """The reverse, with the expectation as a comment."""
        expected = expect(case.data, LIMIT_BYTES)
        lines = [f"# close: {sorted(map(str, expected.closes))}, {len(expected.messages)} messages"]
        lines += ["glued"] if case.is_glued else []
        return "\n".join(lines + [packet.hex(" ") for packet in case.packets()]) + "\n"


def shape(seen: Seen) -> tuple[object, ...]:
    """What makes two frames of a kind."""
    opcode = seen.opcode if seen.opcode in (0, 1, 2, 8, 9, 10) else -1
    size = sum(seen.size > step for step in (0, 125, LIMIT_BYTES))
    return (opcode, seen.is_final, seen.has_reserved_bits, seen.is_masked, seen.is_minimal, size)


def unread(ours: socket.socket) -> int:
    """Bytes that the server has not read from its socket; 0 once it is closed."""
    if ours.fileno() < 0:
        return 0
    return int(struct.unpack("i", fcntl.ioctl(ours.fileno(), termios.FIONREAD, b"\0\0\0\0"))[0])


async def settled(ours: socket.socket) -> None:
    """Until the server has read all there is, and had a turn to answer and one to act."""
    for _ in range(1_000):
        await asyncio.sleep(0)
        if unread(ours) == 0:
            break
    for _ in range(3):
        await asyncio.sleep(0)


def receive(client: socket.socket, wire: bytearray) -> bool:
    """Take what has come; False after the end."""
    try:
        while some := client.recv(1 << 16):
            wire += some
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    return False


def mutate_frames(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A frame more, less, twice, elsewhere, or with another first byte."""
    pieces = [data[one.start : one.end] for one in split(data)]
    at = rng.randrange(len(pieces) + 1)
    kind = rng.randrange(6)
    if kind == 0 and at < len(pieces):
        del pieces[at]
    elif kind == 1 and at < len(pieces):
        pieces[at:at] = [pieces[at]] * rng.choice((1, 1, 2, 70))
    elif kind == 2 and at < len(pieces):
        pieces.insert(rng.randrange(len(pieces)), pieces.pop(at))
    elif kind == 3 and at < len(pieces):
        pieces[at] = bytes([pieces[at][0] ^ rng.choice((0x80, 0x80, 0x40, 0x01, 0x02, 0x0F))]) + pieces[at][1:]
    elif kind == 4 and other:
        taken = rng.choice(split(other) or [None])
        pieces[at:at] = [other[taken.start : taken.end]] if taken else []
    else:
        pieces.insert(at, any_frame(rng))
    return b"".join(pieces)


# ---- the comparison


def compare(wire: bytes, expected: Verdict) -> int | None:
    """Raise `Difference` unless the server's bytes are what was expected; returns the close code."""
    messages: list[tuple[bool, bytes]] = []
    pongs: list[bytes] = []
    code = None
    try:
        for opcode, payload in split_frames(wire):
            if code is not None:
                raise AssertionError("a frame behind the close")
            if opcode in (TEXT, BINARY):
                messages.append((opcode == TEXT, payload))
            elif opcode == PONG:
                pongs.append(payload)
            elif opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big")
            else:
                raise AssertionError(f"opcode {opcode}")
    except (AssertionError, IndexError) as wrong:
        raise Difference(f"our own frames are wrong: {wrong}: {wire!r}") from None
    if messages != expected.messages:
        raise Difference(f"messages: ours {messages}, theirs {expected.messages}"[:1_000])
    if code not in expected.closes:
        raise Difference(f"close code: ours {code}, theirs {expected.closes}")
    if not is_answer(pongs, expected.pings):
        raise Difference(f"pongs: ours {pongs}, pings {expected.pings}"[:1_000])
    return code


def is_answer(pongs: list[bytes], pings: list[bytes]) -> bool:
    """Pongs in the order of the pings, some left out, the last one there (RFC 6455 §5.5.3)."""
    rest = iter(pings)
    return all(pong in rest for pong in pongs) and pongs[-1:] == pings[-1:]
