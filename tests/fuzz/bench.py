"""The load harness: a server's bytes, cut anywhere, to a real engine over TCP; what comes of it against `reference`.

The engine and the server take turns in one thread. Framing is compared in every dialect: the end, by kind, and the
pongs. Messages are compared where one is nothing but a count, in the dialect `raw`; in the others a case is good if
the engine comes through it, which the sanitizer build makes worth something.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from websockets.protocol import CLIENT

from starlight.loadtest import _engine
from starlight.loadtest._engine import Arena, Engine, make_data, read_data
from starlight.loadtest.dialects import DIALECTS, StreamTarget
from starlight.loadtest.target import Target, _socket_address, websocket_keys
from tests.fuzz.engine import Difference, mutate_bytes, smaller_bytes
from tests.fuzz.frames import BINARY, CLOSE, PING, PONG, TEXT, frame, split
from tests.fuzz.read import is_answer, mutate_frames, receive, shape
from tests.fuzz.reference import OPEN_STILL, Verdict, expect

DATA_LIMIT_BYTES: Final = 8 * 1024
FRAME_LIMIT_BYTES: Final = 512 * 1024
FRAGMENTS_LIMIT: Final = 65_536
TURN_S: Final = 2e-5
SLOW_TURN_S: Final = 1e-3
"""Once a busy kernel has not passed the bytes on in a hundred turns."""
END_LIMIT_S: Final = 5.0
NAMES: Final = ("raw", "raw-lines", "native", "lines", "nats", "socketio")
CODES: Final = {
    "masked frame": 1002, "reserved bits": 1002, "reserved opcode": 1002, "control frame over 125 bytes": 1002,
    "fragmented control frame": 1002, "fragments out of order": 1002, "length not in its shortest form": 1002,
    "length of over 63 bits": 1002, "frame over 512 KiB": 1009, "message over 8 MiB": 1009,
    "message of over 65,536 fragments": 1008, "close frame of one byte": 1002, "close code that may not be sent": 1002,
    "close reason that is not UTF-8": 1007, "text that is not UTF-8": 1007,
}  # fmt: skip
"""The close code that each kind stands for; others are of the dialect, not of the framing."""
TOKENS: Final = [
    b"\0", b"\xff", b"~", b'"', b"\n", b"\r\n", b'{"type":"ok","id":1000000001}', b'{"type":"ok","id":3000000000}',
    b'{"type":"error","id":3000000001}', b'"welcome"', b'{"type":"erro', b"MSG everyone 1 16\r\n", b"PING\r\n",
    b"-ERR 'no'\r\n", b"2", b'40{"sid"', make_data(0, 0, 16), make_data(1, 0, 32), make_data(0, 1, 16) + b'"',
    b"\x89\x7e\x00\x7e", b"\x81\x7f\0\0\0\0\0\x08\0\1", b"\x88\0",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What a server sends after the handshake, to an engine of which dialect.

    data: the bytes. cuts: where a new packet begins. is_ready: whether login and joins were answered before, and the
    engine has published twice.
    """

    data: bytes
    cuts: tuple[int, ...] = ()
    dialect: str = "raw"
    is_ready: bool = True

    def packets(self) -> list[bytes]:
        """The bytes as they are sent."""
        ends = sorted({cut for cut in self.cuts if 0 < cut < len(self.data)} | {len(self.data)})
        return [self.data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class Bench:
    """The target."""

    name = "bench"

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.n_cases = 0
        self.keys = websocket_keys(1)

    def close(self) -> None:
        """Let go of the port."""
        self.listener.close()

    # ---- one case

    def run(self, case: Case) -> Hashable:
        """Compare the verdicts; the signature is the dialect, the frames in short, and the end."""
        self.n_cases += 1
        source = 0x7F000001 + self.n_cases // 10_000  # another address before its ports run out
        seen = Session(self.listener, self.keys, source, case)
        try:
            seen.talk()
        finally:
            seen.close()
        expected = expect(case.data, FRAME_LIMIT_BYTES, CLIENT, FRAGMENTS_LIMIT)
        compare(case, seen, expected)
        shapes = [shape(one) for one in split(case.data)[:4]]
        return (case.dialect, case.is_ready, *shapes, *seen.errors, *seen.codes, min(len(case.cuts), 2))

    # ---- cases

    def mutate(self, rng: random.Random, case: Case, other: Case) -> Case:
        """Other frames, other bytes, other packets or another dialect."""
        kind = rng.randrange(10)
        if kind < 3:
            return replace(case, data=_unmasked(rng, mutate_frames(rng, case.data, other.data))[:DATA_LIMIT_BYTES])
        if kind < 5:
            payload = mutate_bytes(rng, rng.choice(TOKENS), rng.choice(TOKENS), TOKENS)
            opcode = rng.choice((TEXT, TEXT, TEXT, BINARY, 0, PING))
            made = frame(opcode, payload, first=rng.choice((0x80, 0x80, 0)), mask=None)
            return replace(case, data=(case.data + made)[:DATA_LIMIT_BYTES])
        if kind < 7:
            return replace(case, data=mutate_bytes(rng, case.data, other.data, TOKENS)[:DATA_LIMIT_BYTES])
        if kind == 7:
            return replace(case, dialect=rng.choice(NAMES))
        if kind == 8:
            return replace(case, is_ready=not case.is_ready)
        size = len(case.data)
        n_cuts = rng.choice((0, 1, 2, 10, size if size <= 200 else 10))
        cuts = range(1, size) if n_cuts == size else (rng.randrange(size + 1) for _ in range(n_cuts))
        return replace(case, cuts=tuple(cuts))

    def smaller(self, case: Case) -> Iterator[Case]:
        """Fewer packets, a plainer dialect, fewer frames, fewer bytes."""
        if case.cuts:
            yield replace(case, cuts=())
        if case.dialect != "raw":
            yield replace(case, dialect="raw")
        for seen in split(case.data):
            yield replace(case, data=case.data[: seen.start] + case.data[seen.end :])
        for data in smaller_bytes(case.data):
            yield replace(case, data=data)

    def read(self, text: str) -> Case:
        """Lines: comments, the dialect, perhaps ``login``, and the packets in hexadecimal."""
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        words = [line for line in lines if line]
        dialect, is_ready = words.pop(0), True
        if words and words[0] == "login":
            is_ready = bool(words.pop(0) != "login")
        packets = [bytes.fromhex(line) for line in words]
        ends = [sum(map(len, packets[:i])) for i in range(1, len(packets))]
        return Case(b"".join(packets), tuple(ends), dialect, is_ready)

    def write(self, case: Case) -> str:
        """The reverse."""
        lines = [case.dialect, *([] if case.is_ready else ["login"])]
        return "\n".join(lines + [packet.hex(" ") for packet in case.packets()]) + "\n"


class Session:
    """One engine with one connection, and the server's end of it.

    Attributes, after `talk`:
        errors, codes: the engine's protocol errors by kind, and close codes.
        replies: messages it has taken since the case began.
        pongs: their payloads, in order.
        is_open: whether the connection still is.
    """

    def __init__(self, listener: socket.socket, keys: list[tuple[bytes, bytes]], source: int, case: Case) -> None:
        self.case, self.keys, self.listener = case, keys, listener
        self.dialect = DIALECTS[case.dialect]
        self.arena = Arena(3, [(0, 0), (0, 1)], [[0, 1]], [0], 1, 64)
        self.engine = Engine(self.arena, 0, 0, [(2, [1], self.dialect.login("u0", ["c1"]), 0, True)])
        target = Target(dialect=case.dialect)
        request, key_at = target.request()
        protocols = ",".join(target.subprotocols).encode()
        address = _socket_address(socket.AF_INET, listener.getsockname())
        self.engine.set_target(address, request, key_at, keys, source, protocols)
        self.configure()
        self.engine.set_ramp(1, 0.0)
        self.wire = bytearray()
        self.client: socket.socket | None = None
        self.pongs: list[bytes] = []

    def configure(self) -> None:
        """The dialect, and messages of 16 and 40 bytes to everyone and to a channel."""
        speaks = self.dialect
        everyone = StreamTarget("everyone", "")
        channel = StreamTarget("channel", "c1") if "channels" in speaks.kinds else everyone
        self.engine.set_dialect(
            form=speaks.form,
            opcode=speaks.opcode,
            json=speaks.has_replies,
            welcome=speaks.welcome,
            templates=[speaks.publish(everyone, False), speaks.publish(channel, False), None],
            joins={1: speaks.join(1, "c1")},
            leaves={1: speaks.leave(1, "c1")},
            sender_receives=True,
            acks=False,
        )
        self.engine.set_load(
            window=0,
            rate_per_s=0.0,
            poisson=False,
            sizes=[16, 40],
            padding=b"x" * 5_000,
            spin=False,
            give_up_s=1.0,
            seed=1,
        )

    def close(self) -> None:
        """End both sides."""
        if self.client is not None:
            self.client.close()
        self.engine.abandon()

    def talk(self) -> None:
        """The handshake, perhaps login and joins, and the case's packets, each read before the next."""
        self.connect()
        self.until(lambda: b"\r\n\r\n" in self.wire)
        self.wire.clear()
        answer = "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        self.send(answer.encode() + self.keys[0][1] + b"\r\n\r\n")
        if self.case.is_ready:
            self.send(self.prelude())
            if self.count("ready") != 1:
                raise Difference("the engine did not get ready")
            self.engine.publish_one()
            self.engine.publish_one()
            self.turn()
        before = self.count("replies") + self.count("deliveries")
        for packet in self.case.packets():
            self.send(packet)
        for _ in range(3):
            self.turn()
        self.replies = self.count("replies") + self.count("deliveries") - before
        self.is_open = self.count("open") == 1
        self.errors, self.codes = self.engine.protocol_errors(), self.engine.close_codes()
        self.read_wire()

    def connect(self) -> None:
        """Have the engine connect, and send its request."""
        until_s = time.monotonic() + END_LIMIT_S
        while self.client is None and time.monotonic() < until_s:
            self.engine.run(_engine.RAMP, TURN_S)
            with contextlib.suppress(BlockingIOError):
                self.client, _ = self.listener.accept()
        if self.client is None:
            raise Difference("the engine does not connect")
        self.client.setblocking(False)

    def prelude(self) -> bytes:
        """What makes a connection of the dialect ready."""
        if self.dialect.form == 2:
            return frame(BINARY, b"PONG\r\n", mask=None)
        welcome = frame(TEXT, b"{" + self.dialect.welcome + b"}", mask=None) if self.dialect.welcome else b""
        joined = frame(TEXT, b'{"type":"ok","id":1000000001}', mask=None) if self.dialect.has_replies else b""
        return welcome + joined

    def count(self, name: str) -> int:
        """One of the engine's counters."""
        return self.arena.counters()[name]

    def turn(self, seconds: float = TURN_S) -> None:
        """The engine reads and writes what there is."""
        assert self.client is not None
        self.engine.run(_engine.IDLE, seconds)
        receive(self.client, self.wire)

    def until(self, is_so: Callable[[], bool]) -> None:
        """Turns until a condition holds."""
        turns, until_s = 0, time.monotonic() + END_LIMIT_S
        while time.monotonic() < until_s:
            if is_so():
                return
            turns += 1
            self.turn(TURN_S if turns < 100 else SLOW_TURN_S)
        raise Difference("the engine does not get on")

    def send(self, data: bytes) -> None:
        """Send, and have the engine read it."""
        assert self.client is not None
        wanted = self.count("bytes_received") + len(data)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.client.send(data)
        self.until(lambda: self.count("bytes_received") >= wanted or not self.count("open"))

    def read_wire(self) -> None:
        """Split what the engine wrote; every frame has to be whole, masked and of a client's kind."""
        data = bytes(self.wire)
        for seen in split(data):
            is_good = seen.is_masked and not seen.has_reserved_bits and seen.is_minimal and seen.is_final
            if not is_good or seen.opcode not in (TEXT, BINARY, CLOSE, PONG):
                raise Difference(f"the engine's own frames are wrong: {seen}")
            if seen.end <= len(data) and seen.opcode == PONG:
                self.pongs.append(seen.payload)


def _unmasked(rng: random.Random, data: bytes) -> bytes:
    """The frames as a server sends them; now and then one stays masked."""
    made = []
    for seen in split(data):
        is_whole = seen.end <= len(data)
        if not seen.is_masked or not is_whole or rng.random() < 0.02:
            made.append(data[seen.start : seen.end])
        else:
            width = 0 if seen.is_minimal else 8
            made.append(frame(seen.opcode, seen.payload, first=seen.first & 0xF0, mask=None, width=width))
    return b"".join(made)


# ---- the comparison


def compare(case: Case, seen: Session, expected: Verdict) -> None:
    """Raise `Difference` unless the engine made of the bytes what was expected."""
    if sum(seen.errors.values()) > 1 or (seen.errors and seen.is_open):
        raise Difference(f"one connection, and {seen.errors}; it is {'open' if seen.is_open else 'closed'}")
    is_bad_text = 1007 in expected.closes or "utf8-early" in expected.named
    if is_bad_text and (case.dialect != "raw" or "utf8-early" in expected.named or _has_stamp(case.data)):
        return  # the text around a stamp is not looked at, and other bad text when its message is whole
    rest = iter(expected.pings)
    if not all(pong in rest for pong in seen.pongs):
        raise Difference(f"pongs: {seen.pongs}, pings: {expected.pings}"[:1_000])
    if case.dialect != "raw":
        return  # which may have ended it earlier
    code = _code(seen)
    if code not in expected.closes and not _is_below_limit(case, expected, code):
        raise Difference(f"the end: ours {code} {seen.errors} {seen.codes}, theirs {expected.closes}")
    taken = len(expected.messages) + ("text that is not UTF-8" in seen.errors)
    if seen.replies != taken:
        raise Difference(f"messages: ours {seen.replies}, theirs {taken}")
    if code is OPEN_STILL and not is_answer(seen.pongs, expected.pings):
        raise Difference(f"pongs: {seen.pongs}, pings: {expected.pings}"[:1_000])


def _has_stamp(data: bytes) -> bool:
    return read_data(data) is not None


def _is_below_limit(case: Case, expected: Verdict, code: int | None) -> bool:
    """The engine's limit is of a frame, and that of the reference of the message under way."""
    last = split(case.data)[-1:]
    return expected.closes == {1009} and code is OPEN_STILL and all(one.size <= FRAME_LIMIT_BYTES for one in last)


def _code(seen: Session) -> int | None:
    """The end in a close code, as `reference` has it."""
    for kind in seen.errors:
        return CODES.get(kind, 1002)
    for code in seen.codes:
        return 1000 if code == 1005 else code
    if not seen.is_open:
        raise Difference("the connection ended, and no reason was counted")
    return OPEN_STILL
