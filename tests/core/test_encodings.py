"""The core's encodings: a publication is written once in every encoding that its receivers use, and in no other."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator

import pytest

from starlight import _inspect
from starlight._fanout import ENCODINGS_LIMIT, FRAMES, LINES, Core
from tests.support.fakes import split_frames

TEXT, BINARY, CLOSE = 1, 2, 8
THREE = [(0, FRAMES, True), (0, LINES, True), (1, FRAMES, False)]
HEADS, TAILS = (b"<", b"["), (b">", b"]]")


class Peer:
    """An owner, and the client at the other end of its socket pair."""

    def __init__(self, core: Core, encoding: int) -> None:
        self.core = core
        self.encoding = encoding
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.subscriber = core.subscriber(self, self.ours.fileno(), None, encoding)

    def on_evicted(self, reason: str, messages: int, n_bytes: int, oldest_ms: int) -> None:
        raise RuntimeError(reason)

    def on_would_evict(self) -> None: ...

    def on_close_sent(self) -> None: ...

    def on_broken(self) -> None: ...

    def frames(self) -> list[tuple[int, bytes]]:
        try:
            return list(split_frames(self.theirs.recv(1 << 20)))
        except BlockingIOError:
            return []

    def messages(self) -> list[bytes]:
        """Payloads of its frames, cut where it has lines."""
        payloads = [payload for _, payload in self.frames()]
        return [line for payload in payloads for line in payload.split(b"\n")] if self.encoding == 1 else payloads

    def close(self) -> None:
        self.core.detach(self.subscriber)
        self.ours.close()
        self.theirs.close()


class World:
    """A core and its peers."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []

    def start(self, encodings: list[tuple[int, int, bool]]) -> Core:
        self.core = Core(encodings=encodings)
        return self.core

    def peer(self, encoding: int) -> Peer:
        self.peers.append(Peer(self.core, encoding))
        return self.peers[-1]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for peer in world.peers:
        peer.close()
    world.core.check()
    counters = world.core.counters()
    assert [counters[name] for name in ("subscribers", "memberships", "chunks", "chunk_bytes")] == [0, 0, 0, 0]


def test_each_encoding_with_members_is_written_once(world: World) -> None:
    core = world.start(THREE)
    channel = core.channel()
    peers = [world.peer(encoding) for encoding in (0, 2, 0, 2, 2)]
    for peer in peers:
        channel.join(peer.subscriber)
    assert core.publish(channel, HEADS, b"one", TAILS) == 5
    assert core.publish(channel, b"for ", b"all", b".") == 5
    core.flush()
    for peer in peers:
        own = (BINARY, b"[one]]") if peer.encoding == 2 else (TEXT, b"<one>")
        assert peer.frames() == [own, (own[0], b"for all.")]
    in_frames, in_lines, in_binary = _inspect.encoding_counts(core)
    assert in_lines == (0, 0)
    assert in_frames == (2, 2 * 2 + len(b"<one>" + b"for all."))
    assert in_binary == (2, 2 * 2 + len(b"[one]]" + b"for all."))


def test_an_encoding_is_written_as_long_as_it_has_a_member(world: World) -> None:
    core = world.start(THREE)
    channel = core.channel()
    text, binary = world.peer(0), world.peer(2)
    channel.join(text.subscriber)
    core.publish(channel, HEADS, b"1", TAILS)
    channel.join(binary.subscriber)  # while the run is open: a new encoding in it
    core.publish(channel, HEADS, b"2", TAILS)
    channel.leave(text.subscriber)
    core.publish(channel, HEADS, b"3", TAILS)
    channel.leave(binary.subscriber)
    assert core.publish(channel, HEADS, b"4", TAILS) == 0
    channel.join(text.subscriber)
    core.publish(channel, HEADS, b"5", TAILS)
    core.flush()
    assert text.messages() == [b"<1>", b"<2>", b"<5>"]
    assert binary.messages() == [b"[2]]", b"[3]]"]
    assert [publications for publications, _ in _inspect.encoding_counts(core)] == [3, 0, 2]


def test_one_receiver_gets_its_codecs_part(world: World) -> None:
    core = world.start(THREE)
    text, lines, binary = world.peer(0), world.peer(1), world.peer(2)
    core.send_many([text.subscriber, lines.subscriber, binary.subscriber], HEADS, b"x", TAILS)
    core.send(binary.subscriber, b"reply")
    core.flush()
    assert text.frames() == [(TEXT, b"<x>")]
    assert lines.frames() == [(TEXT, b"<x>")]
    assert binary.frames() == [(BINARY, b"[x]]"), (BINARY, b"reply")]


def test_members_of_as_many_encodings_as_there_may_be(world: World) -> None:
    core = world.start([(codec, FRAMES, codec % 2 == 0) for codec in range(ENCODINGS_LIMIT)])
    peers = [world.peer(encoding) for encoding in range(ENCODINGS_LIMIT)]
    for peer in peers:
        core.everyone.join(peer.subscriber)
    core.publish(core.everyone, tuple(b"%d:" % codec for codec in range(ENCODINGS_LIMIT)), b"x", b"")
    core.flush()
    assert [peer.frames() for peer in peers] == [
        [(TEXT if codec % 2 == 0 else BINARY, b"%d:x" % codec)] for codec in range(ENCODINGS_LIMIT)
    ]


def test_no_more_encodings_than_a_channels_list_has_room_for(world: World) -> None:
    with pytest.raises(ValueError, match="17 encodings: expected 1 to 16"):
        Core(encodings=[(0, FRAMES, True)] * 17)
    with pytest.raises(ValueError, match="0 encodings"):
        Core(encodings=[])
    with pytest.raises(ValueError, match="framing 1, is_text False"):
        Core(encodings=[(0, LINES, False)])
    with pytest.raises(ValueError, match="codec 16"):
        Core(encodings=[(16, FRAMES, True)])
    core = world.start(THREE)
    with pytest.raises(ValueError, match="encoding 3"):
        core.subscriber(None, 0, None, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", [(b"a",), (b"a", b"b", b"c"), (b"a", "b"), (b"a", None), [b"a", b"b"], None, "a"])
def test_a_head_that_is_none_changes_nothing(world: World, head: object) -> None:
    core = world.start(THREE)
    text, binary = world.peer(0), world.peer(2)
    for peer in (text, binary):
        core.everyone.join(peer.subscriber)
    with pytest.raises(TypeError):
        core.publish(core.everyone, head, bytearray(b"x"), TAILS)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        core.publish(core.everyone, b"", memoryview(b"x"), head)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        core.send(binary.subscriber, head)  # type: ignore[arg-type]
    core.publish(core.everyone, HEADS, b"x", TAILS)
    core.flush()
    assert (text.messages(), binary.messages()) == ([b"<x>"], [b"[x]]"])


def test_a_part_that_is_too_large_for_one_codec_is_refused_for_all(world: World) -> None:
    core = world.start(THREE)
    text = world.peer(0)
    core.everyone.join(text.subscriber)
    huge = bytes(1 << 29)
    with pytest.raises(ValueError, match="over the core's limit"):
        core.publish(core.everyone, (b"", huge), b"x", (b"", huge))
    core.flush()
    assert text.messages() == []


async def test_one_whose_owner_fails_to_close_it_goes_all_the_same(world: World) -> None:
    core = world.core = Core(encodings=THREE, outbox_messages=1, evict_after_ms=0)
    core.bind(asyncio.get_running_loop())
    peer = world.peer(2)
    core.everyone.join(peer.subscriber)
    core.script_sends(bytes(64))  # the sink takes nothing
    core.send(peer.subscriber, b"x")
    core.flush()
    core.send(peer.subscriber, b"x")
    core.sweep()
    assert not peer.subscriber.is_open and core.counters()["evicted_slow_total"] == 1
    core.script_sends(b"")
    await asyncio.sleep(0.05)
    assert core.publish(core.everyone, b"", b"x", b"") == 0
    assert peer.frames() == [(CLOSE, b"")]
    core.unbind()


def test_members_of_three_encodings_see_the_order_of_calls(world: World) -> None:
    """A few thousand random steps against a plain model."""
    rng = random.Random(7)
    core = world.start(THREE)
    channels = [core.channel() for _ in range(4)]
    peers = [world.peer(rng.randrange(3)) for _ in range(12)]
    joined: list[set[int]] = [set() for _ in peers]
    expected: list[list[bytes]] = [[] for _ in peers]
    heard: list[list[bytes]] = [[] for _ in peers]
    publications = [0, 0, 0]

    def parts(peer: Peer, data: bytes) -> bytes:
        codec = THREE[peer.encoding][0]
        return HEADS[codec] + data + TAILS[codec]

    for step in range(4_000):
        data = b"%d" % step
        number = rng.randrange(len(peers))
        channel = rng.randrange(4)
        action = rng.random()
        if action < 0.5:
            core.publish(channels[channel], HEADS, data, TAILS)
            members = [index for index in range(len(peers)) if channel in joined[index]]
            for index in members:
                expected[index].append(parts(peers[index], data))
            for encoding in {peers[index].encoding for index in members}:
                publications[encoding] += 1
        elif action < 0.65:
            core.send(peers[number].subscriber, HEADS, data, TAILS)
            expected[number].append(parts(peers[number], data))
        elif action < 0.8:
            channels[channel].join(peers[number].subscriber)
            joined[number].add(channel)
        elif action < 0.95:
            channels[channel].leave(peers[number].subscriber)
            joined[number].discard(channel)
        else:
            core.flush()
            core.check()
            for index, peer in enumerate(peers):
                heard[index] += peer.messages()
    core.flush()
    for index, peer in enumerate(peers):
        heard[index] += peer.messages()
    assert heard == expected
    assert [each for each, _ in _inspect.encoding_counts(core)] == publications
