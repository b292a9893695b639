"""The delivery checker is proved by planting each fault: in a server, in a log, and at random against a plain model."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlight.loadtest._engine import Checker, make_data, read_data
from starlight.loadtest.checker import EVERYONE, Event, check, count_disorder
from tests.support.loadtest import Peer, broken, peer, short_run

__all__ = ["peer"]


@pytest.mark.parametrize(
    "fault,seen",
    [
        ("loss", {"lost": 1}),
        ("duplicate", {"duplicates": 1}),
        ("swap", {"reordered": 1}),
        ("damage", {"damaged": 1, "lost": 1}),  # nobody can say which message a damaged one was
    ],
)
@pytest.mark.parametrize("model", ["open", "closed"])
def test_a_fault_planted_in_a_broadcast_is_found(peer: Peer, fault: str, seen: dict[str, int], model: str) -> None:
    result = short_run(peer.url(model, fault=fault, at=32), model=model, window=3)
    assert broken(result) == seen and result.counters["sent"] > 10


def test_a_delivery_to_the_wrong_user_is_found(peer: Peer) -> None:
    result = short_run(peer.url("w", fault="wrong", at=32), "direct")
    assert broken(result) == {"misdelivered": 1}


def test_a_delivery_to_the_wrong_channel_is_found(peer: Peer) -> None:
    result = short_run(peer.url("w2", fault="wrong", at=32), "channels", channels=5, members=2, publishers=5)
    assert broken(result) == {"misdelivered": 1}


def test_receivers_that_see_different_orders_are_found(peer: Peer) -> None:
    good = short_run(peer.url("o"), order=True)
    assert broken(good) == {} and good.check.disordered == 0 and good.check.deliveries > 100
    result = short_run(peer.url("o2", fault="swap", at=32), order=True)
    assert broken(result) == {"reordered": 1} and result.check.disordered == 2
    assert result.check.faults == 3


# ---- the order


def log_bytes(*deliveries: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("3I", *delivery) for delivery in deliveries)


def test_one_order_for_all_receivers() -> None:
    groups = [1, 1, 2]
    ann, bob, cat = 0, 1, 2
    first = [(ann, 0, 0), (ann, 1, 0), (ann, 0, 1), (ann, 1, 1)]
    assert count_disorder([log_bytes(*first)], groups) == 0
    assert count_disorder([], groups) == 0
    assert count_disorder([log_bytes(*first, *((bob, *rest) for _, *rest in first))], groups) == 0
    # bob sees ann's middle two the other way round: each sender's own order is kept, and yet there are two orders
    swapped = [(bob, 0, 0), (bob, 0, 1), (bob, 1, 0), (bob, 1, 1)]
    assert count_disorder([log_bytes(*first), log_bytes(*swapped)], groups) == 2
    # another channel has another order, and who was away for a while sees a part
    assert count_disorder([log_bytes(*first, (bob, 2, 0), (bob, 0, 0), (bob, 1, 1), (bob, 2, 1))], groups) == 0
    # nobody contradicts anybody, the three together do
    assert count_disorder(
        [log_bytes((ann, 0, 0), (ann, 1, 0), (bob, 1, 0), (bob, 0, 1), (cat, 0, 1), (cat, 0, 0), (cat, 1, 1))], groups
    ) == 3  # fmt: skip


# ---- the data


@given(st.integers(0, (1 << 18) - 1), st.integers(0, (1 << 30) - 1), st.integers(16, 3000))
def test_data_comes_back(stream: int, number: int, size: int) -> None:
    data = make_data(stream, number, size)
    assert len(data) == size and data[:1] == data[-1:] == b'"'
    assert read_data(b'{"from":"a~b","data":' + data + b"}") == (stream, number, True)


@settings(max_examples=300)
@given(st.integers(16, 300), st.data())
def test_any_changed_byte_is_damage(size: int, draw: st.DataObject) -> None:
    data = bytearray(make_data(5, 77, size))
    at = draw.draw(st.integers(0, size - 2))
    data[at] ^= draw.draw(st.integers(1, 255))
    found = read_data(bytes(data))
    assert found is None or not found[2]


def test_data_too_small_or_too_large() -> None:
    for size in (15, (1 << 18) + 1):
        with pytest.raises(ValueError, match="expected 16 to"):
            make_data(0, 0, size)


# ---- the model over logs


def log_of(count: int) -> list[Event]:
    """`a` sends `count` messages to everyone; `b` and `c` receive them all."""
    events = [Event("joined", EVERYONE, receiver=name) for name in "bc"]
    for number in range(count):
        events.append(Event("sent", EVERYONE, "a", number=number, checksum=number * 7))
        events += [Event("received", EVERYONE, "a", name, number, number * 7) for name in "bc"]
    return events


def counts(events: list[Event]) -> dict[str, int]:
    verdict = check(events)
    names = ("lost", "duplicates", "reordered", "misdelivered", "damaged", "bad_acks")
    return {name: getattr(verdict, name) for name in names if getattr(verdict, name)}


def test_faults_planted_in_a_log() -> None:
    good = log_of(10)
    at = good.index(Event("received", EVERYONE, "a", "b", 4, 28))
    event = good[at]
    later = good.index(Event("received", EVERYONE, "a", "b", 5, 35))
    assert counts(good) == {}
    assert counts(good[:at] + good[at + 1 :]) == {"lost": 1}
    assert counts([*good, event]) == {"duplicates": 1}
    assert counts([*good[:at], *good[at + 1 : later + 1], event, *good[later + 1 :]]) == {"reordered": 1}
    assert counts([*good, event._replace(receiver="d")]) == {"misdelivered": 1}
    assert counts([*good[:at], event._replace(checksum=1), *good[at + 1 :]]) == {"damaged": 1, "lost": 1}
    assert check(good[:at] + good[at + 1 :]).examples == ["lost: 1 from a -> * at b"]


def test_a_closed_receiver_owes_its_gaps_but_not_its_tail() -> None:
    good = log_of(10)
    closed = Event("closed", EVERYONE, receiver="b")
    cut = [event for event in good if event.receiver != "b" or event.number < 5 or event.kind == "joined"]
    assert counts(cut) == {"lost": 5}
    assert counts([*cut, closed]) == {}
    assert counts([*[event for event in cut if (event.receiver, event.number) != ("b", 2)], closed]) == {"lost": 1}


def test_acknowledgements_come_once_and_in_order() -> None:
    sent = [Event("sent", "c", "a", number=number) for number in range(3)]
    acks = [Event("acked", "c", "a", number=number) for number in range(3)]
    assert counts([*sent, *acks]) == {}
    assert counts([*sent, acks[0], acks[0]]) == {"bad_acks": 1}
    assert counts([*sent, acks[1]]) == {"bad_acks": 1}
    with pytest.raises(ValueError, match="after"):
        check([sent[1]])


# ---- the engine's checker against the model


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 32))
def test_engine_and_model_agree_on_random_logs(seed: int) -> None:
    draw = random.Random(seed)
    streams = [(0, 0), (1, 0), (2, 1)]  # two senders to everyone, one to a channel
    receivers = 3
    engine = Checker(2, streams, receivers)
    events: list[Event] = []
    waiting: dict[int, list[Event]] = {receiver: [] for receiver in range(receivers)}
    members: dict[int, set[int]] = {0: set(), 1: set()}

    def join(receiver: int, group: int) -> None:
        engine.join(receiver, group)
        members[group].add(receiver)
        events.append(Event("joined", str(group), receiver=str(receiver)))

    def receive(receiver: int, event: Event, damaged: bool = False) -> None:
        stream = int(event.sender)
        data = bytearray(make_data(stream, event.number, 40))
        if damaged:
            data[3] ^= 1
        engine.received(receiver, bytes(data))
        events.append(event._replace(receiver=str(receiver), checksum=-1 if damaged else 0))

    for receiver in range(receivers):
        join(receiver, 0)
    for _ in range(draw.randrange(60)):
        stream = draw.randrange(3)
        group = streams[stream][1]
        action = draw.random()
        if action < 0.5:
            number = engine.sent(stream)
            events.append(Event("sent", str(group), str(stream), number=number))
            for receiver in members[group]:
                waiting[receiver].append(Event("received", str(group), str(stream), number=number))
        elif action < 0.55 and 0 not in members[1]:
            join(0, 1)
        elif action < 0.58 and 0 in members[1]:
            engine.leave(0, 1)
            members[1].discard(0)
            waiting[0] = [event for event in waiting[0] if event.target != "1"]
            events.append(Event("left", "1", receiver="0"))
        else:
            receiver = draw.randrange(receivers)
            if not waiting[receiver]:
                continue
            if draw.random() < 0.1:
                draw.shuffle(waiting[receiver])
            event = waiting[receiver].pop(0)
            if draw.random() < 0.1:
                continue  # lost
            receive(receiver, event, damaged=draw.random() < 0.05)
            if draw.random() < 0.1:
                receive(draw.randrange(receivers), event)
    verdict = check(events)
    assert engine.finish() == {
        name: getattr(verdict, name) for name in ("lost", "duplicates", "reordered", "misdelivered", "damaged")
    }
