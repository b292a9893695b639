"""Owners and transports that meddle: whenever the core calls one, it may do anything to the core, or fail.

As in `test_fanout_random`, each guest must get exactly what was published or sent to it, in the order of the calls, up
to its end. Here half of the guests are written to through a transport, and every callback (`on_evicted`,
`on_close_sent`, `on_broken`, the transport's `write`) publishes, sends, joins, leaves, closes, evicts, flushes and
detaches at random, others and itself, from within the core's own loops. `REENTRY_SEEDS` plays so many courses.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
import uvloop

from starlight._fanout import FRAMES, LINES, Channel, Core, Subscriber
from tests.core.test_fanout_random import wire_frames
from tests.support.fakes import CLOSE, PING, PONG, TEXT

STEPS = 400
GUESTS = 12  # at a time; the core checks pins up to 32
MEDDLING = 6  # nested calls
SEEDS = range(int(os.environ.get("REENTRY_SEEDS", 20)))


class Guest:
    """An owner: what it must get, what it got, and one end of a socket pair or a transport."""

    def __init__(self, play: Play, form: int, has_descriptor: bool) -> None:
        self.play = play
        self.form = form
        self.expected: list[bytes] = []
        self.received = bytearray()
        self.channels: set[Channel] = set()
        self.end = "open"  # or closed, evicted, broken
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self.pipe = None if has_descriptor else Pipe(self)
        fd = self.ours.fileno() if has_descriptor else -1
        self.subscriber: Subscriber = play.core.subscriber(self, fd, self.pipe, form)

    def on_evicted(self, reason: str, messages: int, n_bytes: int, oldest_ms: int) -> None:
        assert self.end in ("open", "closed"), "evicted twice"
        self.play.core.evict(self.subscriber, 4008, b"slow")
        self.finish("evicted")

    def on_broken(self) -> None:
        assert self.end != "broken", "broken twice"
        self.finish("broken")

    def on_close_sent(self) -> None:
        self.play.meddle()

    def finish(self, end: str) -> None:
        self.end = end
        self.channels.clear()
        self.play.meddle()

    def read(self, size: int) -> int:
        if self.pipe is not None:
            return self.pipe.take(size)
        try:
            some = self.theirs.recv(size)
        except BlockingIOError:
            return 0
        self.received += some
        return len(some)

    def verify(self, is_final: bool) -> None:
        frames, torn = wire_frames(bytes(self.received))
        messages: list[bytes] = []
        for place, (opcode, payload) in enumerate(frames):
            assert opcode in (TEXT, CLOSE, PING, PONG)
            if opcode == TEXT:
                messages += payload.split(b"\n") if self.form == LINES else [payload]
            elif opcode == CLOSE:
                assert place == len(frames) - 1 and not torn, "something behind the close"
        assert messages == self.expected[: len(messages)]
        if is_final and self.end in ("open", "closed"):
            assert not torn and len(messages) == len(self.expected)
            assert (CLOSE in [opcode for opcode, _ in frames]) == (self.end == "closed")


class Pipe:
    """A transport that takes everything and hands on what its guest reads; it may fail, and it meddles."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.held = bytearray()
        self.closing = False

    def get_write_buffer_size(self) -> int:
        return len(self.held)

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        assert not self.held, "written to although it held something"
        self.held += data
        self.guest.play.meddle()

    def take(self, size: int) -> int:
        some = self.held[:size]
        del self.held[:size]
        self.guest.received += some
        if not self.held and self.guest in self.guest.play.guests:
            self.guest.play.core.writable(self.guest.subscriber)
        return len(some)


class Play:
    """A core, its guests, and the things that may happen, one at random at a time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.loop = uvloop.new_event_loop()
        self.failures: list[dict[str, object]] = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.core = Core(
            outbox_messages=12,
            outbox_bytes=6_000,
            evict_after_ms=0,
            memory_budget_bytes=self.random.choice([1, 3, 64]) << 20,
        )
        self.core.bind(self.loop)
        self.channels = [self.core.everyone] + [self.core.channel() for _ in range(3)]
        self.guests: list[Guest] = []
        self.counter = 0
        self.depth = 0
        self.is_over = False
        self.actions: list[Callable[[], object]] = [
            *[self.publish] * 8, *[self.send] * 4, *[self.join] * 4, *[self.read] * 3, *[self.attach] * 2,
            self.leave, self.close, self.evict, self.detach, self.ping, self.flush, self.kernel, self.break_one,
        ]  # fmt: skip

    def meddle(self) -> None:
        """What an owner or a transport does when it is called."""
        if self.is_over or self.depth >= MEDDLING:
            return
        self.depth += 1
        try:
            for _ in range(self.random.randrange(4)):
                self.random.choice(self.actions)()
            if self.random.random() < 0.05:
                raise RuntimeError("on purpose")
        finally:
            self.depth -= 1

    def anybody(self) -> Guest | None:
        return self.random.choice(self.guests) if self.guests else None

    def message(self, size: int) -> tuple[bytes, bytes, bytes]:
        self.counter += 1
        return b'{"n":', b'"%d\n' % self.counter + b"x" * size + b'"', b"}"

    @staticmethod
    def seen_as(form: int, parts: tuple[bytes, bytes, bytes]) -> bytes:
        return b"".join(parts).replace(b"\n", b" ") if form == LINES else b"".join(parts)

    # --- what may happen

    def attach(self) -> None:
        if len(self.guests) < GUESTS:
            self.guests.append(Guest(self, self.random.choice([FRAMES, LINES]), self.random.random() < 0.5))

    def join(self) -> None:
        guest, channel = self.anybody(), self.random.choice(self.channels)
        if guest is not None:
            joined = channel.join(guest.subscriber)
            assert joined == (guest.subscriber.is_open and channel not in guest.channels)
            if joined:
                guest.channels.add(channel)

    def leave(self) -> None:
        guest, channel = self.anybody(), self.random.choice(self.channels)
        if guest is not None:
            assert channel.leave(guest.subscriber) == (channel in guest.channels)
            guest.channels.discard(channel)

    def publish(self) -> None:
        channel, parts = self.random.choice(self.channels), self.message(self.random.choice([0, 1, 100, 1000, 70_000]))
        members = [guest for guest in self.guests if channel in guest.channels]
        for guest in members:
            if guest.subscriber.is_open:
                guest.expected.append(self.seen_as(guest.form, parts))
        self.core.publish(channel, *parts)

    def send(self) -> None:
        guest, parts = self.anybody(), self.message(self.random.choice([0, 10, 300, 5000]))
        if guest is not None:
            if guest.subscriber.is_open:
                guest.expected.append(self.seen_as(guest.form, parts))
            self.core.send(guest.subscriber, *parts)

    def close(self) -> None:
        guest = self.anybody()
        if guest is not None:
            if guest.subscriber.is_open:
                guest.end = "closed"
            self.core.close(guest.subscriber, 1001, b"going")

    def evict(self) -> None:
        guest = self.anybody()
        if guest is not None and guest.subscriber.is_open:
            guest.end = "evicted"
            guest.channels.clear()
            self.core.evict(guest.subscriber, 4008, b"slow")

    def detach(self) -> None:
        guest = self.anybody()
        if guest is not None:
            self.guests.remove(guest)
            self.core.detach(guest.subscriber)
            guest.ours.close()
            guest.theirs.close()
            guest.verify(is_final=False)

    def ping(self) -> None:
        guest = self.anybody()
        if guest is not None:
            self.core.ping(guest.subscriber)

    def read(self) -> None:
        guest = self.anybody()
        if guest is not None:
            guest.read(self.random.choice([1, 50, 4096, 1 << 20]))

    def flush(self) -> None:
        self.core.flush()

    def kernel(self) -> None:
        takes = [self.random.choice([0, 1, 7, 40, 900, -errno.ENOBUFS, -errno.EINTR]) for _ in range(8)]
        self.core.script_sends(struct.pack("8i", *takes))

    def break_one(self) -> None:
        guest = self.anybody()
        if guest is not None and guest.pipe is not None:
            guest.pipe.closing = True
        else:
            self.core.script_sends(struct.pack("2i", 7, -errno.EPIPE))

    # --- the course of it

    def step(self) -> None:
        if self.random.random() < 0.2:
            self.turn()
        elif self.random.random() < 0.05:
            self.core.sweep()
        else:
            try:
                self.random.choice(self.actions)()
            except RuntimeError as error:
                assert str(error) == "on purpose"

    def turn(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))

    def finish(self) -> None:
        self.is_over = True
        self.core.script_sends(b"")
        for _ in range(10_000):
            self.turn()
            moved = sum(guest.read(1 << 20) for guest in self.guests)
            if not moved and not self.core.counters()["outbox_bytes"]:
                break
        else:
            raise AssertionError("outboxes did not drain")
        for guest in self.guests:
            guest.verify(is_final=True)
            self.core.detach(guest.subscriber)
            guest.ours.close()
            guest.theirs.close()


@pytest.fixture
def play(seed: int) -> Iterator[Play]:
    play = Play(seed)
    yield play
    play.core.unbind()
    play.loop.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_done_from_within_the_core_everybody_gets_what_is_his(play: Play) -> None:
    for _ in range(STEPS):
        play.step()
        play.core.check()
    play.finish()
    counters = play.core.counters()
    live = ("subscribers", "memberships", "chunks", "chunk_bytes", "transport_bytes", "spans", "full")
    assert not any(counters[name] for name in live), counters
    assert all("on purpose" in str(failure["exception"]) for failure in play.failures), play.failures
