"""The core, case by case, over socket pairs: torn writes, both forms, limits, the control lane, memory, threads."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
import uvloop

from starlight._fanout import FRAMES, LINES, Core, Subscriber
from starlight.errors import WrongThread
from tests.support.fakes import CLOSE, PING, PONG, TEXT, split_frames

EAGAIN = 0
EVICTED = {"slow": (4008, b"slow consumer"), "timeout": (4009, b"write timeout"), "budget": (4008, b"slow consumer")}
"""What the core's reasons become."""


class Peer:
    """One end of a socket pair as a subscriber's owner, and the other end as the client."""

    def __init__(self, core: Core, form: int = FRAMES, buffer_bytes: int = 1 << 20) -> None:
        self.core = core
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        self.events: list[object] = []
        self.subscriber: Subscriber = core.subscriber(self, self.ours.fileno(), None, form)
        core.everyone.join(self.subscriber)

    def on_evicted(self, reason: str, messages: int, n_bytes: int, oldest_ms: int) -> None:
        self.events.append(reason)
        if hasattr(self, "subscriber"):
            self.core.evict(self.subscriber, *EVICTED[reason])

    def on_close_sent(self) -> None:
        self.events.append("close sent")

    def on_broken(self) -> None:
        self.events.append("broken")

    def read(self) -> bytes:
        wire = bytearray()
        try:
            while some := self.theirs.recv(1 << 20):
                wire += some
        except BlockingIOError:
            pass
        return bytes(wire)

    def end(self) -> None:
        self.core.detach(self.subscriber)
        self.ours.close()
        self.theirs.close()


class Stage:
    """A core on a loop of its own, driven turn by turn."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.peers: list[Peer] = []

    def core(self, **limits: int) -> Core:
        self.the_core = Core(**limits)
        self.the_core.bind(self.loop)
        return self.the_core

    def peer(self, form: int = FRAMES, buffer_bytes: int = 1 << 20) -> Peer:
        self.peers.append(Peer(self.the_core, form, buffer_bytes))
        return self.peers[-1]

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.run_until_complete(asyncio.sleep(0))

    def script(self, *taken: int) -> None:
        self.the_core.script_sends(struct.pack(f"{len(taken)}i", *taken))

    def drain(self, peer: Peer) -> bytes:
        wire = b""
        for _ in range(1000):
            self.turn()
            wire += peer.read()
            if not peer.subscriber.outbox_bytes and not peer.subscriber.is_full:
                return wire + peer.read()
        raise AssertionError("the outbox did not drain")


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    for peer in stage.peers:
        peer.end()
    stage.the_core.check()
    assert stage.the_core.counters()["chunk_bytes"] == 0
    stage.the_core.unbind()
    stage.loop.close()


def payloads(wire: bytes, opcode: int = TEXT) -> list[bytes]:
    return [payload for code, payload in split_frames(wire) if code == opcode]


def test_a_burst_is_one_span_and_one_send(stage: Stage) -> None:
    core = stage.core()
    peers = [stage.peer() for _ in range(3)]
    for number in range(50):
        assert core.publish(core.everyone, b"[", b"%d" % number, b"]") == 3
    stage.turn()
    assert core.counters()["sends_total"] == 3
    assert core.counters()["sent_spans_total"] == 3
    for peer in peers:
        assert payloads(peer.read()) == [b"[%d]" % number for number in range(50)]


def test_replies_between_publications_break_nobody_elses_span(stage: Stage) -> None:
    core = stage.core()
    sender, *others = [stage.peer() for _ in range(4)]
    for number in range(20):
        core.publish(core.everyone, b"p", b"%d" % number, b"")
        core.send(sender.subscriber, b"ok%d" % number)
    stage.turn()
    assert payloads(sender.read()) == [b"%b%d" % (kind, n) for n in range(20) for kind in (b"p", b"ok")]
    for peer in others:
        assert payloads(peer.read()) == [b"p%d" % number for number in range(20)]
    assert core.counters()["sends_total"] == 4
    assert core.counters()["sent_spans_total"] == 40 + 3


@pytest.mark.parametrize("form", [FRAMES, LINES])
@pytest.mark.parametrize("first", range(1, 60))
def test_every_torn_write_resumes_where_it_was(stage: Stage, form: int, first: int) -> None:
    """The kernel takes `first` bytes, then nothing, then 1, 2, 3 ... at a time; pings and pongs stay between frames."""
    core = stage.core()
    peer = stage.peer(form)
    stage.script(first, EAGAIN, 1, 2, 3, EAGAIN, 4, 5, -errno.ENOBUFS, 6, 7, 8, 9, 10)
    for number in range(6):
        core.send(peer.subscriber, b"message-", b"%d\n" % number, b"!")
    core.ping(peer.subscriber)
    stage.turn()
    core.send(peer.subscriber, b"later")
    core.ping(peer.subscriber)
    wire = stage.drain(peer)
    expected = [b"message-%d\n!" % number for number in range(6)] + [b"later"]
    texts = payloads(wire)
    if form == LINES:
        texts = [line for text in texts for line in text.split(b"\n")]
        expected = [message.replace(b"\n", b" ") for message in expected]
    assert texts == expected
    assert len(payloads(wire, PING)) in (1, 2)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 262_143, 262_144, 1_000_000])
@pytest.mark.parametrize("form", [FRAMES, LINES])
def test_payload_sizes(stage: Stage, form: int, size: int) -> None:
    core = stage.core(outbox_bytes=1 << 24)
    peer = stage.peer(form)
    data = b"x" * size
    core.publish(core.everyone, b"", data, b"")
    core.send(peer.subscriber, b"", data)
    core.publish(core.everyone, b"", memoryview(data), b"end")
    texts = payloads(stage.drain(peer))
    if form == LINES:
        texts = [line for text in texts for line in text.split(b"\n")]
    assert texts == [data, data, data + b"end"]


def test_merged_frames_hold_at_most_64_kib_or_one_larger_message(stage: Stage) -> None:
    core = stage.core(outbox_bytes=1 << 24)
    peer = stage.peer(LINES)
    sizes = [30_000, 30_000, 5_535, 1, 70_000, 10, 10]
    for size in sizes:
        core.send(peer.subscriber, b"y" * size)
    texts = payloads(stage.drain(peer))
    assert [len(line) for text in texts for line in text.split(b"\n")] == sizes
    assert [len(text) for text in texts] == [60_001, 5_537, 70_000, 21]


def test_a_merged_frame_grows_until_a_byte_of_it_is_out(stage: Stage) -> None:
    core = stage.core()
    peer = stage.peer(LINES)
    stage.script(*[EAGAIN] * 50)
    core.send(peer.subscriber, b"one")
    stage.turn()
    core.send(peer.subscriber, b"two")
    stage.script()
    assert payloads(stage.drain(peer)) == [b"one\ntwo"]
    stage.script(1, *[EAGAIN] * 50)
    core.send(peer.subscriber, b"three")
    stage.turn()
    core.send(peer.subscriber, b"four")
    stage.script()
    assert payloads(stage.drain(peer)) == [b"three", b"four"]


def test_an_error_of_the_socket_is_told_once_and_takes_it_out_of_its_channels(stage: Stage) -> None:
    core = stage.core()
    peer, other = stage.peer(), stage.peer()
    for victim, script in ((peer, (3, -errno.EPIPE)), (other, (-errno.ECONNRESET,))):
        stage.script(*script)
        core.send(victim.subscriber, b"hello")
        stage.turn(5)
        core.send(victim.subscriber, b"again")
        stage.turn(5)
        assert victim.events == ["broken"]
        assert not victim.subscriber.is_open
    assert core.publish(core.everyone, b"", b"x", b"") == 0


@pytest.mark.parametrize("judge", ["sweep", "end of the turn"])
def test_one_over_a_limit_that_takes_nothing_is_evicted_and_whole_frames_are_dropped(stage: Stage, judge: str) -> None:
    core = stage.core(outbox_bytes=2_000, evict_after_ms=0)
    peer = stage.peer()
    if judge == "sweep":
        stage.script(7, *[EAGAIN] * 50)
        core.send(peer.subscriber, b"first message")
        core.flush()
    for _ in range(30):
        core.send(peer.subscriber, b"z" * 100)
    assert peer.events == [] and peer.subscriber.outbox_messages >= 30, "not while messages are delivered"
    if judge == "sweep":
        core.sweep()
    else:
        stage.script(7, *[EAGAIN] * 50)
        stage.turn()
    stage.script()
    assert peer.events == ["slow"]
    assert core.publish(core.everyone, b"", b"x", b"") == 0
    frames = list(split_frames(stage.drain(peer)))
    assert frames[0] == (TEXT, b"first message" if judge == "sweep" else b"z" * 100)
    assert frames[1] == (CLOSE, struct.pack(">H", 4008) + b"slow consumer")
    assert len(frames) == 2 and peer.events == ["slow", "close sent"]
    n_messages, counters = 30 - (judge != "sweep"), core.counters()
    assert counters["dropped_slow_messages_total"] == n_messages
    assert counters["dropped_slow_bytes_total"] == n_messages * 102


def test_delivering_writes_to_no_socket(stage: Stage) -> None:
    """Whatever the limits say; only a mebibyte appended is flushed at once."""
    core = stage.core(outbox_messages=1, outbox_bytes=100, evict_after_ms=0)
    peer = stage.peer(buffer_bytes=1 << 22)
    for number in range(1_000):
        core.publish(core.everyone, b"", b"%0512d" % number, b"")
        core.send(peer.subscriber, b"%0256d" % number)
    assert core.counters()["sends_total"] == 0
    for _ in range(1_000):
        core.send(peer.subscriber, b"x" * 400)
    assert core.counters()["sends_total"] > 0 and peer.events == []
    assert len(payloads(stage.drain(peer))) == 3_000 and peer.events == []


def test_each_byte_taken_gives_new_time(stage: Stage) -> None:
    """Over the limits, below them, and through a transport: only who has taken nothing for the whole time goes."""
    core = stage.core(outbox_messages=10, evict_after_ms=1, write_timeout_ms=60_000)
    peer = stage.peer()
    stage.script(1, EAGAIN)
    for number in range(60):
        core.send(peer.subscriber, b"%d" % number)
    core.flush()
    for _ in range(20):
        time.sleep(0.002)
        stage.script(2, EAGAIN)
        core.sweep()
        assert peer.events == []
    time.sleep(0.002)
    stage.script(EAGAIN)
    core.sweep()
    assert peer.events == ["slow"]
    stage.script()


def test_below_the_limits_each_byte_taken_gives_new_time_too(stage: Stage) -> None:
    core = stage.core(write_timeout_ms=1)
    peer = stage.peer()
    stage.script(1, EAGAIN)
    core.send(peer.subscriber, b"x" * 100)
    core.flush()
    for _ in range(20):
        time.sleep(0.002)
        stage.script(2, EAGAIN)
        core.sweep()
        assert peer.events == []
    time.sleep(0.002)
    stage.script(EAGAIN)
    core.sweep()
    assert peer.events == ["timeout"]
    assert core.counters()["dropped_timeout_messages_total"] == 0, "the torn frame may still get out"
    stage.script()
    assert payloads(stage.drain(peer)) == [b"x" * 100]


def test_what_was_left_of_a_torn_frame_counts_as_dropped_when_it_never_gets_out(stage: Stage) -> None:
    core = stage.core(write_timeout_ms=0)
    peer = stage.peer()
    stage.script(3, *[EAGAIN] * 9)
    core.send(peer.subscriber, b"x" * 100)
    core.flush()
    core.sweep()
    assert peer.events == ["timeout"] and core.counters()["dropped_timeout_messages_total"] == 0
    core.detach(peer.subscriber)
    counters = core.counters()
    assert (counters["dropped_timeout_messages_total"], counters["dropped_timeout_bytes_total"]) == (1, 99)
    stage.script()


def test_an_event_of_the_socket_without_progress_gives_no_new_time(stage: Stage) -> None:
    core = stage.core(outbox_messages=1, evict_after_ms=40)
    peer = stage.peer()
    stage.script(*[EAGAIN] * 10_000)
    for _ in range(3):
        core.send(peer.subscriber, b"x")
    began_s = time.monotonic()
    while not peer.events and time.monotonic() - began_s < 20:
        stage.turn()  # the socket pair is writable, so each turn wakes it, and it takes nothing
        core.sweep()
        time.sleep(0.001)
    assert peer.events == ["slow"]
    stage.script()


def test_over_the_limits_the_age_of_the_oldest_message_ends_one_that_takes_a_byte_at_a_time(stage: Stage) -> None:
    core = stage.core(outbox_messages=10, evict_after_ms=60_000, write_timeout_ms=100)
    over = stage.peer()
    stage.script(*[EAGAIN] * 10_000)
    for _ in range(3_000):
        core.send(over.subscriber, b"x" * 10)
    core.flush()
    began_s = time.monotonic()
    while not over.events and time.monotonic() - began_s < 20:
        stage.script(*[1, EAGAIN] * 4)
        core.sweep()
        core.check()
        time.sleep(0.01)
    stage.script()
    assert over.events == ["slow"]


def test_messages_may_be_older_by_the_time_in_which_the_loop_was_held_up(stage: Stage) -> None:
    core = stage.core(outbox_messages=10, evict_after_ms=60_000, write_timeout_ms=200)
    peer = stage.peer()
    core.sweep()
    stage.script(1, EAGAIN)
    for _ in range(3_000):
        core.send(peer.subscriber, b"x" * 10)
    core.flush()
    time.sleep(0.5)
    for _ in range(3):
        stage.script(1, EAGAIN)
        core.sweep()
        assert peer.events == [], "older than the write timeout, but not by its own fault"
    began_s = time.monotonic()
    while not peer.events and time.monotonic() - began_s < 20:
        time.sleep(0.01)
        stage.script(1, EAGAIN)
        core.sweep()
    stage.script()
    assert peer.events == ["slow"], "the time that was given back has run out"


def test_however_often_it_fills_it_is_in_each_list_once_and_is_freed_when_in_none(stage: Stage) -> None:
    """300 times without a turn: a count of lists in 8 bits would wrap, and free what they still point to."""
    core = stage.core(outbox_messages=1, evict_after_ms=0)
    peer = stage.peer()
    for number in range(300):
        stage.script(EAGAIN, 1 << 20)  # full, and then it has read when it is written to once more
        core.publish(core.everyone, b"a", b"%d" % number, b"")
        core.publish(core.everyone, b"b", b"%d" % number, b"")
        core.flush()
        assert peer.subscriber.is_full
        core.ping(peer.subscriber)
        core.publish(core.everyone, b"c", b"%d" % number, b"")
        core.sweep()
        assert not peer.subscriber.is_full and not peer.subscriber.outbox_messages and not peer.events
        core.check()
        peer.read()
    for number in range(255):  # over its limits again and again while messages are delivered, and nothing is flushed
        stage.script(EAGAIN, 1 << 20)
        core.publish(core.everyone, b"d", b"%d" % number, b"")
        core.publish(core.everyone, b"e", b"%d" % number, b"")
        core.check()
        peer.read()
    core.detach(peer.subscriber)
    core.flush()
    stage.turn(3)
    core.check()


def test_a_burst_in_one_turn_evicts_nobody_before_its_sinks_had_a_chance(stage: Stage) -> None:
    """The memory budget bounds what is many times the limits: the largest outbox goes, and is freed within the turn."""
    core = stage.core(memory_budget_bytes=8 << 20, evict_after_ms=60_000)
    large, small = stage.peer(buffer_bytes=4_096), stage.peer(buffer_bytes=4_096)
    for number in range(640):
        core.send(large.subscriber, b"l" * 100_000)
        if number % 80 == 0:
            core.send(small.subscriber, b"s%d" % number, b"s" * 100_000)
        assert core.counters()["chunk_bytes"] <= (8 << 20) + (2 << 20)
    assert large.events == [], "its owner is told at the end of the turn"
    stage.turn()
    assert large.events == ["budget"]
    assert len(payloads(stage.drain(small))) == 8 and small.events == []
    heard = len(payloads(stage.drain(large)))
    assert heard + core.counters()["dropped_budget_messages_total"] == 640


def test_the_message_limit_waits_for_evict_after(stage: Stage) -> None:
    core = stage.core(outbox_messages=10, evict_after_ms=60_000)
    peer = stage.peer()
    stage.script(*[EAGAIN] * 50)
    core.send(peer.subscriber, b"x")
    stage.turn()
    for _ in range(50):
        core.send(peer.subscriber, b"x")
    core.sweep()
    assert peer.events == []
    stage.script()
    assert len(payloads(stage.drain(peer))) == 51


def test_who_is_not_full_is_flushed_on_the_spot_and_never_evicted(stage: Stage) -> None:
    """10,000 messages in one turn: the kernel takes them all as they come."""
    core = stage.core(evict_after_ms=0, outbox_bytes=4_096)
    peer = stage.peer(buffer_bytes=1 << 22)
    wire = b""
    for number in range(10_000):
        core.publish(core.everyone, b"", b"%064d" % number, b"")
        if number % 500 == 0:
            wire += peer.read()
    wire += stage.drain(peer)
    assert peer.events == []
    assert payloads(wire) == [b"%064d" % number for number in range(10_000)]


def test_a_subscriber_that_takes_nothing_is_evicted_with_the_write_timeout(stage: Stage) -> None:
    core = stage.core(write_timeout_ms=0)
    peer = stage.peer()
    stage.script(*[EAGAIN] * 50)
    core.send(peer.subscriber, b"x")
    core.flush()
    core.sweep()
    assert peer.events == ["timeout"]
    stage.script()


def test_an_orderly_close_comes_behind_the_outbox_and_nothing_behind_it(stage: Stage) -> None:
    core = stage.core()
    peer = stage.peer()
    stage.script(5, EAGAIN)
    core.publish(core.everyone, b"", b"before the close", b"")
    core.close(peer.subscriber, 1000, b"bye")
    core.publish(core.everyone, b"", b"after", b"")
    core.send(peer.subscriber, b"after")
    core.ping(peer.subscriber)
    frames = [frame for frame in split_frames(stage.drain(peer)) if frame[0] != PING]
    assert frames == [(TEXT, b"before the close"), (CLOSE, struct.pack(">H", 1000) + b"bye")]
    assert peer.events == ["close sent"]


def test_an_empty_close(stage: Stage) -> None:
    core = stage.core()
    peer = stage.peer()
    core.close(peer.subscriber, 0)
    assert list(split_frames(stage.drain(peer))) == [(CLOSE, b"")]


def test_a_subscriber_knows_its_channels_in_the_order_of_joining(stage: Stage) -> None:
    core = stage.core()
    ann, bob = stage.peer().subscriber, stage.peer().subscriber
    channels = [core.channel(name) for name in "abcd"]
    unnamed = core.channel()
    for channel in (*channels, unnamed):
        channel.join(ann)
    channels[1].join(bob)
    assert (ann.channels(), ann.n_memberships) == (["a", "b", "c", "d"], 6)  # `everyone` is one, too
    assert channels[0].leave(ann) and channels[0].join(ann)
    assert ann.channels() == ["b", "c", "d", "a"]
    assert ann in channels[1] and bob in channels[1] and bob not in channels[0]
    assert channels[1].name == "b" and unnamed.name is None
    assert core.leave_all(ann) == ["b", "c", "d", "a"]
    assert (ann.channels(), ann.n_memberships, core.leave_all(ann)) == ([], 0, [])
    assert ann not in channels[1] and bob.channels() == ["b"]


@pytest.mark.parametrize("how", ["evicted", "broken", "detached"])
def test_a_membership_that_the_core_has_ended_is_told_once(stage: Stage, how: str) -> None:
    core = stage.core()
    peer = stage.peer()
    one, two = core.channel("one"), core.channel("two")
    one.join(peer.subscriber)
    two.join(peer.subscriber)
    if how == "evicted":
        core.evict(peer.subscriber, 4008)
    elif how == "broken":
        stage.script(-errno.ECONNRESET)
        core.publish(one, b"x", b"", b"")
        stage.turn(2)
        assert peer.events == ["broken"]
    else:
        core.detach(peer.subscriber)
    assert (len(one), len(two)) == (0, 0)
    assert core.leave_all(peer.subscriber) == ["one", "two"]
    assert core.leave_all(peer.subscriber) == []


def test_leaving_gets_what_was_published_before_and_nothing_later(stage: Stage) -> None:
    core = stage.core()
    channel = core.channel()
    stayer, leaver, joiner = stage.peer(), stage.peer(), stage.peer()
    assert channel.join(stayer.subscriber) and channel.join(leaver.subscriber)
    assert not channel.join(leaver.subscriber)
    core.publish(channel, b"", b"one", b"")
    assert channel.leave(leaver.subscriber) and not channel.leave(leaver.subscriber)
    core.send(leaver.subscriber, b"ok")
    assert channel.join(joiner.subscriber)
    core.send(joiner.subscriber, b"ok")
    core.publish(channel, b"", b"two", b"")
    stage.turn()
    assert payloads(stayer.read()) == [b"one", b"two"]
    assert payloads(leaver.read()) == [b"one", b"ok"]
    assert payloads(joiner.read()) == [b"ok", b"two"]


def test_a_large_round_is_sliced_and_everybody_gets_everything(stage: Stage) -> None:
    core = stage.core()
    peers = [stage.peer() for _ in range(2_300)]
    seen: list[tuple[int, bytes]] = []

    def between_slices() -> None:  # the round began at the 1,000th, so the first ones come last
        seen.append((core.counters()["sends_total"], peers[0].read()))
        core.send(peers[0].subscriber, b"single")  # overtakes what is left of the round

    core.publish(core.everyone, b"", b"round", b"")
    stage.loop.call_soon(between_slices)  # behind the end of this turn
    after = lambda: seen.append((core.counters()["sends_total"], peers[0].read()))  # noqa: E731
    stage.loop.call_soon(stage.loop.call_soon, after)
    stage.turn(4)
    assert seen[0] == (1_000, b"")
    assert seen[1][0] <= 2_001 and payloads(seen[1][1]) == [b"round", b"single"]
    assert all(payloads(peer.read()) == [b"round"] for peer in peers[1:])
    core.publish(core.everyone, b"", b"next", b"")
    stage.turn(4)
    assert all(payloads(peer.read()) == [b"next"] for peer in peers)


def test_a_round_of_large_messages_is_sliced_by_what_is_copied(stage: Stage) -> None:
    core = stage.core(outbox_bytes=1 << 24)
    peers = [stage.peer() for _ in range(100)]
    seen: list[int] = []
    core.publish(core.everyone, b"", b"x" * 900_000, b"")
    stage.loop.call_soon(lambda: seen.append(core.counters()["sent_bytes_total"]))  # behind the end of this turn
    stage.turn(100)
    assert 0 < seen[0] < core.counters()["sent_bytes_total"] / 2
    got = dict.fromkeys(peers, 0)
    while min(got.values()) < 900_000:
        for peer in peers:
            got[peer] += len(peer.read())
        stage.turn(10)


def test_what_a_turn_appends_is_flushed_by_the_slice_and_all_of_it_if_that_is_much(stage: Stage) -> None:
    core = stage.core(outbox_bytes=1 << 24, memory_budget_bytes=16 << 20)  # an eighth of it: 2 MiB
    for _ in range(1_200):
        stage.peer()
    text = b"x" * ((1 << 20) + 1)
    everyone, one = core.everyone, core.channel()
    one.join(stage.peer().subscriber)
    core.publish(everyone, b"", b"for everyone", b"")
    core.publish(one, b"", text, b"")
    assert core.counters()["slices_total"] == 1
    core.publish(one, b"", text, b"")
    assert core.counters()["slices_total"] == 2
    core.publish(everyone, b"", b"for everyone", b"")
    core.publish(one, b"", text, b"")
    assert core.counters()["slices_total"] > 3
    assert core.counters()["outbox_messages"] <= 3  # of the one that is full


def test_more_than_a_mebibyte_in_a_turn_is_flushed_at_once(stage: Stage) -> None:
    core = stage.core(outbox_bytes=1 << 24)
    stage.peer()
    core.publish(core.everyone, b"", b"x" * 600_000, b"")
    assert core.counters()["sends_total"] == 0
    core.publish(core.everyone, b"", b"x" * 600_000, b"")
    assert core.counters()["sends_total"] > 0


def test_quiet_stalled_subscribers_do_not_pin_chunks(stage: Stage) -> None:
    """300 that take nothing, each with a little on a quiet channel between heavy traffic: 256 KiB each were 75 MiB."""
    core = stage.core(memory_budget_bytes=256 << 20)
    reader = stage.peer()
    stalled = []
    for _ in range(300):
        peer = stage.peer(buffer_bytes=1)
        core.everyone.leave(peer.subscriber)
        quiet = core.channel()
        quiet.join(peer.subscriber)
        core.publish(quiet, b"", b"q" * 10_000, b"")
        stage.turn()
        assert peer.subscriber.is_full
        core.publish(quiet, b"", b"behind", b"")
        stalled.append(peer)
        for _ in range(3):
            core.publish(core.everyone, b"", b"h" * 100_000, b"")
            stage.turn()
            reader.read()
    assert core.counters()["chunk_bytes"] > 50 << 20
    core.sweep()
    assert core.counters()["chunk_bytes"] < 10 << 20
    for peer in stalled:
        assert payloads(stage.drain(peer)) == [b"q" * 10_000, b"behind"]


def test_over_the_budget_the_largest_outboxes_go_first(stage: Stage) -> None:
    core = stage.core(memory_budget_bytes=4 << 20, outbox_bytes=1 << 30, outbox_messages=1 << 20)
    small, large = stage.peer(buffer_bytes=4096), stage.peer(buffer_bytes=4096)
    for peer in (small, large):
        core.everyone.leave(peer.subscriber)
    for number in range(80):
        core.send(large.subscriber, b"l" * 100_000)
        if number % 8 == 0:
            core.send(small.subscriber, b"s" * 10_000)
        stage.turn()
    assert large.events == ["budget"] and small.events == []
    assert core.counters()["chunk_bytes"] <= 4 << 20
    assert core.counters()["evicted_budget_total"] == 1


class SlowTransport:
    """A transport that accepts writes into a buffer of its own, as TLS does; `let_go` is its resume_writing."""

    def __init__(self) -> None:
        self.held = bytearray()
        self.out = bytearray()
        self.largest_write_bytes = 0

    def write(self, data: bytes) -> None:
        self.largest_write_bytes = max(self.largest_write_bytes, len(data))
        self.held += data

    def get_write_buffer_size(self) -> int:
        return len(self.held)

    def is_closing(self) -> bool:
        return False

    def let_go(self) -> None:
        self.out += self.held
        self.held.clear()


@pytest.mark.parametrize("form", [FRAMES, LINES])
def test_through_a_transport_the_stream_is_the_same(stage: Stage, form: int) -> None:
    core = stage.core(outbox_bytes=1 << 24)
    owner = Peer.__new__(Peer)
    owner.events = []
    transport = SlowTransport()
    subscriber = core.subscriber(owner, -1, transport, form)
    core.everyone.join(subscriber)
    messages = [b"%d" % number * size for number, size in enumerate([1, 10, 200_000, 5, 70_000, 3])]
    for message in messages:
        core.publish(core.everyone, b"", message, b"")
        core.ping(subscriber)
    core.close(subscriber, 1000)
    for _ in range(20):
        stage.turn()
        transport.let_go()
        core.writable(subscriber)
    frames = list(split_frames(bytes(transport.out)))
    texts = [payload for opcode, payload in frames if opcode == TEXT]
    assert [line for text in texts for line in text.split(b"\n")] == messages
    assert frames[-1][0] == CLOSE and owner.events == ["close sent"]
    assert transport.largest_write_bytes <= 64 * 1024
    core.detach(subscriber)


def test_what_transports_hold_counts_against_the_budget(stage: Stage) -> None:
    core = stage.core(memory_budget_bytes=2 << 20, outbox_bytes=1 << 24)
    transports = [SlowTransport() for _ in range(64)]
    subscribers = []
    for transport in transports:
        owner = Peer.__new__(Peer)
        owner.events = []
        subscribers.append(core.subscriber(owner, -1, transport, FRAMES))
        core.everyone.join(subscribers[-1])
    core.publish(core.everyone, b"", b"x" * 70_000, b"")  # each transport takes 64 KiB: 4 MiB in all
    stage.turn(2)
    core.sweep()
    counters = core.counters()
    assert 0 < counters["transport_bytes"] + counters["chunk_bytes"] <= 2 << 20
    assert 32 <= counters["evicted_budget_total"] < 48  # no more than that takes
    for _ in range(3):
        for transport, subscriber in zip(transports, subscribers, strict=True):
            transport.let_go()
            core.writable(subscriber)
        stage.turn()
    assert core.counters()["transport_bytes"] == 0
    for subscriber in subscribers:
        core.detach(subscriber)


def test_nothing_is_sent_while_the_transport_holds_the_handshake(stage: Stage) -> None:
    core = stage.core()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    transport = SlowTransport()
    transport.write(b"HTTP/1.1 101")
    owner = Peer.__new__(Peer)
    subscriber = core.subscriber(owner, ours.fileno(), transport, FRAMES)
    core.send(subscriber, b"welcome")
    stage.turn()
    with pytest.raises(BlockingIOError):
        theirs.recv(100)
    transport.let_go()
    core.writable(subscriber)
    stage.turn()
    assert payloads(theirs.recv(100)) == [b"welcome"]
    core.detach(subscriber)
    ours.close()
    theirs.close()


def test_other_threads_are_refused(stage: Stage) -> None:
    core = stage.core()
    peer = stage.peer()
    channel = core.channel()
    raised: list[type] = []

    def try_all() -> None:
        calls = [
            lambda: core.publish(core.everyone, b"", b"x", b""),
            lambda: core.send(peer.subscriber, b"x"),
            lambda: core.close(peer.subscriber, 1000),
            lambda: core.evict(peer.subscriber, 1000),
            lambda: core.detach(peer.subscriber),
            lambda: core.ping(peer.subscriber),
            lambda: core.writable(peer.subscriber),
            lambda: channel.join(peer.subscriber),
            lambda: channel.leave(peer.subscriber),
            core.flush,
            core.sweep,
            core.counters,
            core.owners,
        ]
        for call in calls:
            try:
                call()
            except WrongThread as error:
                raised.append(type(error))

    thread = threading.Thread(target=try_all)
    thread.start()
    thread.join()
    assert len(raised) == 13


def test_an_owner_is_told_what_was_in_the_outbox_when_its_connection_ended(stage: Stage) -> None:
    core = stage.core(outbox_bytes=1_000)
    slow, broken = stage.peer(), stage.peer()
    told: list[tuple[int, ...]] = []
    slow.on_evicted = lambda *figures: told.append(figures)  # type: ignore[method-assign]
    assert core.outbox(slow.subscriber) == (0, 0, 0)
    for peer, code in ((slow, 4503), (broken, 0)):
        stage.script(EAGAIN)
        core.send(peer.subscriber, b"x" * 100)
        core.flush()
        core.publish(core.everyone, b"", b"y" * 200, b"")  # in the run still, for both
        messages, n_bytes, oldest_ms = core.outbox(peer.subscriber)
        assert (messages, n_bytes) == (2, 102 + 204) and oldest_ms >= 0
        assert peer.subscriber.outbox_messages == 1, "looking settles nothing"
        if code:
            core.evict(peer.subscriber, code)
        else:
            stage.script(-errno.EPIPE)
        stage.turn(3)
        messages, n_bytes, oldest_ms = core.outbox(peer.subscriber)
        assert (messages, n_bytes) == (2, 102 + 204) and oldest_ms >= 0, "kept for the owner"
        core.detach(peer.subscriber)
        assert core.outbox(peer.subscriber) == (0, 0, 0)


def test_an_owner_may_publish_detach_and_evict_others_in_its_callback(stage: Stage) -> None:
    core = stage.core(outbox_bytes=1_000, evict_after_ms=0)
    first, second, third = stage.peer(), stage.peer(), stage.peer()

    def on_evicted(reason: str, messages: int, n_bytes: int, oldest_ms: int) -> None:
        first.events.append(reason)
        core.evict(first.subscriber, 4008)
        core.publish(core.everyone, b"", b"left", b"")
        core.evict(second.subscriber, 4503)

    first.on_evicted = on_evicted  # type: ignore[method-assign]
    stage.script(EAGAIN, EAGAIN)
    core.send(first.subscriber, b"x")
    core.flush()
    for _ in range(20):
        core.send(first.subscriber, b"y" * 100)
    stage.script(EAGAIN)
    core.sweep()
    stage.turn(3)
    assert first.events[0] == "slow"
    assert payloads(third.read()) == [b"left"]
    assert payloads(second.read(), CLOSE) == [struct.pack(">H", 4503)]


@pytest.mark.parametrize("form", [FRAMES, LINES])
def test_who_is_about_to_be_evicted_gets_no_more_although_the_turn_goes_on(stage: Stage, form: int) -> None:
    """Many times the budget in one turn, as answers to one read: what is held stays a little above it."""
    core = stage.core(memory_budget_bytes=2 << 20)
    slow, other = stage.peer(form, buffer_bytes=1), stage.peer()
    for number in range(500):
        core.send(slow.subscriber, b"x" * 20_000)
        core.publish(core.everyone, b"", b"%d" % number, b"")
        assert slow.subscriber.outbox_bytes <= 4 << 20
    assert core.counters()["chunk_bytes"] < 4 << 20
    stage.turn()
    assert slow.events == ["budget"]
    assert payloads(stage.drain(other)) == [b"%d" % number for number in range(500)]


def test_one_that_has_read_while_the_loop_was_held_up_is_not_evicted(stage: Stage) -> None:
    """A handler that holds the loop is no fault of clients: they are written to once more before they go."""
    core = stage.core(outbox_messages=10, evict_after_ms=20)
    peer, stalled = stage.peer(buffer_bytes=1), stage.peer(buffer_bytes=1)
    wire, n_messages = b"", 50
    for number in range(n_messages):
        core.publish(core.everyone, b"x" * 1_000, b"%d" % number, b"")
    core.flush()
    assert peer.subscriber.is_full and stalled.subscriber.is_full and peer.subscriber.outbox_messages > 10
    wire += peer.read()
    time.sleep(0.03)  # and no turn of the loop
    core.sweep()
    assert stalled.events[:1] == ["slow"]
    assert peer.events == []
    wire += stage.drain(peer)
    assert len(payloads(wire)) == n_messages


@pytest.mark.parametrize("takes", [0, 1])
def test_behind_a_transport_progress_is_what_that_still_holds(stage: Stage, takes: int) -> None:
    core = stage.core(outbox_messages=10, evict_after_ms=5)
    owner = Peer.__new__(Peer)
    owner.events = []
    transport = SlowTransport()
    subscriber = core.subscriber(owner, -1, transport, FRAMES)
    for _ in range(200):
        core.send(subscriber, b"x" * 1_000)
    stage.turn()
    assert subscriber.is_full and owner.events == []
    for _ in range(20):
        time.sleep(0.006)
        del transport.held[:takes]
        core.sweep()
    assert owner.events == ([] if takes else ["slow"])
    core.detach(subscriber)


def test_behind_a_transport_nobody_goes_for_a_time_in_which_the_loop_was_held_up(stage: Stage) -> None:
    """Only the loop writes what a transport holds: it was never offered to the socket meanwhile."""
    core = stage.core(outbox_messages=10, evict_after_ms=250)
    owner = Peer.__new__(Peer)
    owner.events = []
    subscriber = core.subscriber(owner, -1, SlowTransport(), FRAMES)
    core.sweep()
    for _ in range(200):
        core.send(subscriber, b"x" * 1_000)
    stage.turn()
    time.sleep(0.6)
    core.sweep()
    assert owner.events == []
    began_s = time.monotonic()
    while not owner.events and time.monotonic() - began_s < 20:
        time.sleep(0.02)
        core.sweep()
    assert owner.events == ["slow"]
    core.detach(subscriber)


def test_the_age_of_an_outbox_is_that_of_its_oldest_message(stage: Stage) -> None:
    core = stage.core()
    peer = stage.peer()
    assert peer.subscriber.oldest_ms is None
    before_ms = core.now_ms()
    core.send(peer.subscriber, b"x")
    assert 0 <= (peer.subscriber.oldest_ms or 0) - before_ms % 2**32 < 10_000
    assert payloads(stage.drain(peer)) == [b"x"]
    assert peer.subscriber.oldest_ms is None


def test_one_pong_waits_the_latest(stage: Stage) -> None:
    """Through a real connection in test_connection.py; here: control frames do not enter a torn frame."""
    core = stage.core()
    peer = stage.peer()
    stage.script(4, *[EAGAIN] * 50)
    core.send(peer.subscriber, b"torn frame")
    stage.turn()
    for _ in range(5):
        core.ping(peer.subscriber)
    core.send(peer.subscriber, b"behind")
    stage.script()
    frames = list(split_frames(stage.drain(peer)))
    assert frames == [(TEXT, b"torn frame"), (PING, b""), (TEXT, b"behind")]
    assert PONG not in [opcode for opcode, _ in frames]


# --- the clock --------------------------------------------------------------------------------------------------------


def test_68_the_clock_counts_our_own_work_and_forgives_what_we_slept_through() -> None:
    """Longer than a stop has to be, both of them."""
    core = Core()
    began_ms, until_s = core.now_ms(), time.process_time() + 1.3
    while time.process_time() < until_s:
        pass
    assert core.now_ms() - began_ms >= 1_280  # the CPU time is known to 10 ms
    began_ms, stopped_ms, before_s = core.now_ms(), core.stopped_ms(), time.monotonic()
    time.sleep(1.3)
    passed_ms, gone_ms = core.now_ms() - began_ms, 1_000 * (time.monotonic() - before_s)
    assert core.stopped_ms() - stopped_ms > 1_000
    assert abs(passed_ms + core.stopped_ms() - stopped_ms - gone_ms) < 100  # what isn't forgiven has passed
