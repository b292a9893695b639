"""What the benches of the core do, once for pytest-benchmark (`test_core_cases.py`) and once for `callgrind`.

A case builds a core of its own with its subscribers, and is then run any number of times; each run does ``units`` of
work (deliveries, publishes or evictions), so that time and instructions can be given for one. Null sinks are
descriptors whose sends null_sink.c swallows; without that library they are UDP sockets on which the kernel drops
everything, so that only then kernel time is included.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from starlight._fanout import FRAMES, LINES, Channel, Core, Subscriber

NULL_FD = 1 << 30
HEAD = b'{"type":"broadcast","from":"user-0001","data":'
DATA = b'"' + b"x" * 126 + b'"'
TAIL = b"}"
OK = b'{"type":"ok","id":123456,"clients":1000}'


def has_null_sinks() -> bool:
    """Whether null_sink.c is loaded."""
    return "null_sink" in os.environ.get("LD_PRELOAD", "")


class Owner:
    """Stands for a connection: does what the real one does to the core when it is evicted."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.subscriber: Subscriber | None = None

    def on_evicted(self, reason: str, messages: int, n_bytes: int, oldest_ms: int) -> None:
        if self.subscriber is not None:
            self.core.evict(self.subscriber, 4008, b"slow consumer")
        self.leave()

    def on_broken(self) -> None:
        self.leave()

    def on_close_sent(self) -> None:
        pass

    def leave(self) -> None:
        if self.subscriber is not None:
            self.core.detach(self.subscriber)
            self.subscriber = None


class World:
    """A core and its subscribers, of which none is on a loop: the cases flush by hand."""

    def __init__(self, **limits: int) -> None:
        self.core = Core(**limits)
        self.open = contextlib.ExitStack()
        self.owners: list[Owner] = []
        self.peers: list[socket.socket] = []

    def make_owner(self, core: Core) -> Owner:
        """What owns the next subscriber."""
        return Owner(core)

    def add(self, fd: int, form: int = FRAMES) -> Subscriber:
        """Attach a descriptor, as a member of everyone."""
        owner = self.make_owner(self.core)
        owner.subscriber = self.core.subscriber(owner, fd, None, form)
        self.owners.append(owner)
        self.core.everyone.join(owner.subscriber)
        return owner.subscriber

    def add_null(self, count: int, form: int = FRAMES) -> list[Subscriber]:
        """Attach sinks that take everything."""
        if has_null_sinks():
            return [self.add(NULL_FD + len(self.owners) + number, form) for number in range(count)]
        drain = self.open.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        drain.bind(("127.0.0.1", 0))
        sink = self.open.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sink.connect(drain.getsockname())
        return [self.add(sink.fileno(), form) for _ in range(count)]

    def add_pairs(self, count: int, send_buffer_bytes: int = 65536) -> list[Subscriber]:
        """Attach socket pairs; the other ends are in ``peers``."""
        added = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            for end in (ours, theirs):
                end.setblocking(False)
                self.open.enter_context(end)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
            self.peers.append(theirs)
            added.append(self.add(ours.fileno()))
        return added

    def read_all(self) -> None:
        """Empty the socket pairs."""
        for peer in self.peers:
            with contextlib.suppress(BlockingIOError):
                while peer.recv(1 << 18):
                    pass

    def close(self) -> None:
        for owner in self.owners:
            owner.leave()
        self.open.close()


@dataclass(frozen=True)
class Case:
    """A bench of the core.

    build: makes the world. run: the work that is measured. after: what puts the world back, not measured; None where
    the run itself does. is_once: a run uses its world up, and every run gets a new one.
    """

    name: str
    unit: str
    units: int
    build: Callable[[], World]
    run: Callable[[World], None]
    after: Callable[[World], None] | None = None
    is_once: bool = False


def publish(core: Core, channel: Channel, count: int) -> None:
    for _ in range(count):
        core.publish(channel, HEAD, DATA, TAIL)


def null_world(count: int, form: int = FRAMES) -> Callable[[], World]:
    def build() -> World:
        world = World()
        world.add_null(count, form)
        return world

    return build


def broadcast(window: int) -> Callable[[World], None]:
    def run(world: World) -> None:
        publish(world.core, world.core.everyone, window)
        world.core.flush()

    return run


def append(world: World) -> None:
    publish(world.core, world.core.everyone, 64)


def flush(world: World) -> None:
    world.core.flush()


def publish_with_ok(world: World) -> None:
    core, sender = world.core, world.owners[0].subscriber
    assert sender is not None
    for _ in range(64):
        core.publish(core.everyone, HEAD, DATA, TAIL)
        core.send(sender, OK)
    core.flush()


def direct(world: World) -> None:
    core = world.core
    for owner in world.owners:
        if owner.subscriber is not None:
            core.send(owner.subscriber, HEAD, DATA, TAIL)
    core.flush()


def pairs_world() -> World:
    world = World()
    world.add_pairs(100)
    return world


class ChannelsWorld(World):
    """1,000 subscribers in 5 of 100 channels each, 50 members a channel."""

    def __init__(self) -> None:
        super().__init__()
        subscribers = self.add_null(1000)
        self.channels = [self.core.channel() for _ in range(100)]
        for number, subscriber in enumerate(subscribers):
            for turn in range(5):
                self.channels[(number * 7 + turn * 20) % 100].join(subscriber)


def mixed(world: World) -> None:
    """640 publications round the channels, one direct after every tenth, flushed every 64."""
    assert isinstance(world, ChannelsWorld)
    core = world.core
    for number in range(640):
        core.publish(world.channels[number * 37 % 100], HEAD, DATA, TAIL)
        receiver = world.owners[number].subscriber
        if number % 10 == 0 and receiver is not None:
            core.send(receiver, HEAD, DATA, TAIL)
        if number % 64 == 63:
            core.flush()


def full_world() -> World:
    """900 sinks that take everything, and 100 socket pairs that are full."""
    world = World(outbox_bytes=16384, outbox_messages=64, evict_after_ms=0)
    stalled = world.add_pairs(100, send_buffer_bytes=4096)
    for _ in range(1000):
        if all(subscriber.is_full for subscriber in stalled):
            break
        broadcast(1)(world)
    world.add_null(900)
    return world


def evict(world: World) -> None:
    """Publish until the stalled ones are over the byte limit; the sweep then carries the evictions out."""
    for _ in range(20):
        publish(world.core, world.core.everyone, 8)
        world.core.flush()
    world.core.sweep()
    evicted = world.core.counters()["evicted_slow_total"]
    assert evicted == 100, evicted


class PushbackWorld(World):
    """100 socket pairs with small buffers on a loop, which wakes them when they may be written to again."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.open.callback(self.loop.close)
        self.core.bind(self.loop)
        self.open.callback(self.core.unbind)
        self.add_pairs(100, send_buffer_bytes=4096)

    def turn(self) -> None:
        """Poll once, as the loop does between two turns."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()


def push_back(world: World) -> None:
    """Each subscriber fills up, is noticed, waits, is read from, is woken and gets the rest: one pushback each."""
    assert isinstance(world, PushbackWorld)
    publish(world.core, world.core.everyone, 128)
    world.core.flush()
    for _ in range(64):
        if world.core.counters()["full"] == 0:
            return
        world.read_all()
        world.turn()
        world.turn()
    raise AssertionError("the socket pairs are still full")


def churn(world: World) -> None:
    """Everyone leaves a channel and joins it again."""
    everyone = world.core.everyone
    for owner in world.owners:
        if owner.subscriber is not None:
            everyone.leave(owner.subscriber)
            everyone.join(owner.subscriber)


def cases() -> list[Case]:
    """All cases; sizes and windows as in the table of bench/README.md."""
    fan_out = [
        Case(f"fan-out-n{count}-w{window}", "delivery", count * window, null_world(count), broadcast(window))
        for count in (100, 1000, 5000)
        for window in (1, 16, 64)
    ]
    return [
        *fan_out,
        Case("fan-out-lines-n1000-w16", "delivery", 16_000, null_world(1000, LINES), broadcast(16)),
        Case("append-n1000", "publish", 64, null_world(1000), append, flush),
        Case("publish-ok-n1000-w64", "delivery", 64_000, null_world(1000), publish_with_ok),
        Case("direct-n1000", "delivery", 1000, null_world(1000), direct),
        Case("socket-pairs-n100-w16", "delivery", 1600, pairs_world, broadcast(16), World.read_all),
        Case("mixed-channels", "delivery", 640 * 50 + 64, ChannelsWorld, mixed),
        Case("pushback-n100", "pushback", 100, PushbackWorld, push_back, World.read_all),
        Case("evict-100-of-1000", "eviction", 100, full_world, evict, is_once=True),
        Case("leave-and-join-n1000", "member", 1000, null_world(1000), churn),
    ]
