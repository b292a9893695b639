"""The core against a slow, obvious model: random joins, publications, stalls, closes, torn writes; byte-exact streams.

The model is a list per subscriber: every message it must get, in the order of the calls. What arrives at the other end
of its socket pair must be exactly those, whatever the kernel took of each write: all of them for a subscriber that
stayed, all before the close for one that was closed, the first so many (then the close, or nothing) for one that was
evicted.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from starlight._fanout import FRAMES, LINES, Channel, Core, Subscriber
from tests.support.fakes import CLOSE, PING, PONG, TEXT

OUTBOX_MESSAGES = 12
OUTBOX_BYTES = 6_000


@dataclass
class ModelSubscriber:
    """What one subscriber must see."""

    form: int
    expected: list[bytes] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    channels: set[int] = field(default_factory=set)
    end: str = "open"  # open, closed, evicted or broken
    evict: Callable[[int], None] = lambda code: None
    """Tells the core the code that its decision becomes."""
    close_code: int = 0
    is_close_sent: bool = False
    # The stream of one that was evicted or whose socket broke is only compared as a prefix.
    is_prefix: bool = False
    n_owed: int = -1
    """Messages that one evicted by the core had not got whole, as its owner was told; -1: it wasn't."""
    is_judging: bool = False
    """Whether a turn ends or a sweep runs: the core judges at no other time."""

    def on_evicted(self, reason: str, messages: int, n_bytes: int, oldest_ms: int) -> None:
        assert self.end in ("open", "closed") and self.is_judging
        assert reason == "slow" and (messages > OUTBOX_MESSAGES or n_bytes > OUTBOX_BYTES), "within its limits"
        self.n_owed = messages
        if self.end == "open":  # else the close that waits is the one it gets
            self.close_code = 4008
        self.end, self.is_prefix = "evicted", True
        self.evict(4008)

    def on_close_sent(self) -> None:
        self.is_close_sent = True

    def on_broken(self) -> None:
        self.end, self.is_prefix = "broken", True


def wire_frames(wire: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Whole frames, and what is left of a torn one."""
    frames, at = [], 0
    while at + 2 <= len(wire):
        size, start = wire[at + 1] & 0x7F, at + 2
        assert wire[at] & 0xF0 == 0x80 and not wire[at + 1] & 0x80
        if size == 126:
            size, start = int.from_bytes(wire[at + 2 : at + 4], "big"), at + 4
        elif size == 127:
            size, start = int.from_bytes(wire[at + 2 : at + 10], "big"), at + 10
        if start > len(wire) or start + size > len(wire):
            break
        frames.append((wire[at] & 0x0F, wire[start : start + size]))
        at = start + size
    return frames, wire[at:]


class CoreMachine(RuleBasedStateMachine):
    """Every rule is one call of the core's API or one thing that a peer or kernel may do."""

    subscribers = Bundle("subscribers")

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.loop = uvloop.new_event_loop()
        self.core = Core(outbox_messages=OUTBOX_MESSAGES, outbox_bytes=OUTBOX_BYTES, evict_after_ms=0)
        self.core.bind(self.loop)
        self.channels: list[Channel] = [self.core.everyone] + [self.core.channel() for _ in range(3)]
        self.models: dict[Subscriber, ModelSubscriber] = {}
        self.sockets: dict[Subscriber, tuple[socket.socket, socket.socket]] = {}
        self.counter = 0

    def message(self, size: int) -> tuple[bytes, bytes, bytes]:
        self.counter += 1
        data = b'"%d\n' % self.counter + b"x" * size + b'\r"'
        return b'{"n":', data, b"}"

    @staticmethod
    def seen_as(form: int, parts: tuple[bytes, bytes, bytes]) -> bytes:
        head, data, tail = parts
        if form == LINES:
            data = data.replace(b"\n", b" ").replace(b"\r", b" ")
        return head + data + tail

    @rule(target=subscribers, form=st.sampled_from([FRAMES, LINES]))
    def attach(self, form: int) -> Subscriber:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        model = ModelSubscriber(form)
        subscriber = self.core.subscriber(model, ours.fileno(), None, form)
        model.evict = lambda code: self.core.evict(subscriber, code, b"slow")
        self.models[subscriber] = model
        self.sockets[subscriber] = (ours, theirs)
        return subscriber

    @rule(subscriber=subscribers, channel=st.integers(0, 3))
    def join(self, subscriber: Subscriber, channel: int) -> None:
        model = self.models[subscriber]
        joined = self.channels[channel].join(subscriber)
        assert joined == (subscriber.is_open and channel not in model.channels)
        if joined:
            model.channels.add(channel)

    @rule(subscriber=subscribers, channel=st.integers(0, 3))
    def leave(self, subscriber: Subscriber, channel: int) -> None:
        model = self.models[subscriber]
        left = self.channels[channel].leave(subscriber)
        if model.end in ("open", "closed"):
            assert left == (channel in model.channels)
        model.channels.discard(channel)

    @rule(channel=st.integers(0, 3), size=st.sampled_from([0, 1, 100, 130, 1000, 70_000]), times=st.integers(1, 5))
    def publish(self, channel: int, size: int, times: int) -> None:
        for _ in range(times):
            parts = self.message(size)
            for subscriber, model in self.models.items():
                if channel in model.channels and model.end == "open" and subscriber.is_open:
                    model.expected.append(self.seen_as(model.form, parts))
            members = sum(channel in m.channels and m.end in ("open", "closed") for m in self.models.values())
            assert self.core.publish(self.channels[channel], *parts) == members

    @rule(subscriber=subscribers, size=st.sampled_from([0, 10, 300, 5000]))
    def send(self, subscriber: Subscriber, size: int) -> None:
        parts = self.message(size)
        if subscriber.is_open:
            self.models[subscriber].expected.append(self.seen_as(self.models[subscriber].form, parts))
        self.core.send(subscriber, *parts)

    @rule(subscriber=subscribers)
    def ping(self, subscriber: Subscriber) -> None:
        self.core.ping(subscriber)

    @rule(subscriber=subscribers)
    def close(self, subscriber: Subscriber) -> None:
        model = self.models[subscriber]
        if model.end == "open" and subscriber.is_open:
            model.end, model.close_code = "closed", 1001
        self.core.close(subscriber, 1001, b"going")

    @rule(subscriber=subscribers)
    def evict(self, subscriber: Subscriber) -> None:
        model = self.models[subscriber]
        self.core.evict(subscriber, 4008, b"slow")
        if model.is_close_sent:  # too late
            return
        if model.end in ("open", "closed"):
            if model.end == "open":
                model.close_code = 4008
            model.end, model.is_prefix = "evicted", True
        model.channels.clear()

    @rule(
        script=st.lists(
            st.one_of(st.integers(1, 40), st.integers(100, 900), st.just(0), st.just(-errno.ENOBUFS)), max_size=12
        )
    )
    def kernel_takes(self, script: list[int]) -> None:
        self.core.script_sends(struct.pack(f"{len(script)}i", *script))

    @rule()
    def kernel_breaks(self) -> None:
        self.core.script_sends(struct.pack("2i", 7, -errno.EPIPE))

    @rule()
    def turn(self) -> None:
        with self.judging():
            self.loop.run_until_complete(asyncio.sleep(0))
        self.forget_channels_of_the_gone()

    @rule()
    def sweep(self) -> None:
        with self.judging():
            self.core.sweep()
        self.forget_channels_of_the_gone()
        for subscriber in self.models:
            assert not (subscriber.is_open and subscriber.is_full and self.is_over(subscriber)), "not evicted"

    @contextmanager
    def judging(self) -> Iterator[None]:
        for model in self.models.values():
            model.is_judging = True
        yield
        for model in self.models.values():
            model.is_judging = False

    @staticmethod
    def is_over(subscriber: Subscriber) -> bool:
        return subscriber.outbox_messages > OUTBOX_MESSAGES or subscriber.outbox_bytes > OUTBOX_BYTES

    @rule(subscriber=subscribers, size=st.sampled_from([1, 50, 4096, 1 << 20]))
    def peer_reads(self, subscriber: Subscriber, size: int) -> None:
        self.read(subscriber, size)

    @rule(subscriber=consumes(subscribers))
    def detach(self, subscriber: Subscriber) -> None:
        self.verify(subscriber, is_final=False)
        self.core.detach(subscriber)
        for end in self.sockets.pop(subscriber):
            end.close()
        del self.models[subscriber]

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "core"):
            self.core.check()

    def forget_channels_of_the_gone(self) -> None:
        for model in self.models.values():
            if model.end in ("evicted", "broken"):
                model.channels.clear()

    def read(self, subscriber: Subscriber, size: int) -> int:
        try:
            some = self.sockets[subscriber][1].recv(size)
        except BlockingIOError:
            return 0
        self.models[subscriber].received += some
        return len(some)

    def verify(self, subscriber: Subscriber, is_final: bool) -> None:
        model = self.models[subscriber]
        frames, torn = wire_frames(bytes(model.received))
        messages: list[bytes] = []
        for place, (opcode, payload) in enumerate(frames):
            if opcode == TEXT:
                messages += payload.split(b"\n") if model.form == LINES else [payload]
            elif opcode == CLOSE:
                assert place == len(frames) - 1 and not torn, "something behind the close"
                assert int.from_bytes(payload[:2], "big") == model.close_code
            else:
                assert opcode in (PING, PONG)
        assert messages == model.expected[: len(messages)]
        if is_final and model.n_owed >= 0 and model.form == FRAMES:
            n_missing = len(model.expected) - len(messages)
            assert n_missing in (model.n_owed, model.n_owed - 1), "the torn one gets out, or not"
        if is_final and model.end in ("open", "closed"):
            assert not torn and len(messages) == len(model.expected)
            assert (frames[-1:] and frames[-1][0] == CLOSE) == (model.end == "closed") or not frames

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        self.core.script_sends(b"")
        for _ in range(10_000):
            self.turn()
            moved = sum(self.read(subscriber, 1 << 20) for subscriber in self.models)
            if not moved and not self.core.counters()["outbox_bytes"]:
                break
        else:
            raise AssertionError("outboxes did not drain")
        for subscriber in list(self.models):
            self.verify(subscriber, is_final=True)
            self.core.detach(subscriber)
            for end in self.sockets[subscriber]:
                end.close()
        counters = self.core.counters()
        assert not any(
            counters[name] for name in ("subscribers", "memberships", "chunks", "chunk_bytes", "spans", "full")
        )
        self.core.unbind()
        self.loop.close()


TestCore = CoreMachine.TestCase
TestCore.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
