"""The delivery checker over logs: the same rules as the engine's (`_check.pxd`), as an obvious model, in O(n).

Feed it what was sent, received, joined, left and acknowledged, in the order in which each party saw it. It serves
three uses: to check logs of clients that are not the engine, to be the model against which the engine's checker is
tested, and to say in few lines what is promised (design contract: C1 order, C4 no duplicates, C5 acknowledgements).

`count_disorder` is the engine's own for C3, one order for all receivers: that can't be judged while messages arrive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Key = tuple[str, str]
"""A stream: (sender, target). The target is a channel, a user, or EVERYONE."""

EVERYONE = "*"


class Event(NamedTuple):
    """One line of a log.

    kind: `sent` (sender wrote a message), `received` (receiver got one), `joined` (receiver is confirmed as member of
        target), `left` (receiver may no longer get anything of target), `closed` (receiver's connection ended: its
        tail is not owed), `acked` (sender got the reply to a message).
    checksum: of the message's data as the sender computed it, and as the receiver did.
    """

    kind: Literal["sent", "received", "joined", "left", "closed", "acked"]
    target: str
    sender: str = ""
    receiver: str = ""
    number: int = 0
    checksum: int = 0


@dataclass
class Verdict:
    """Counts of what went wrong, and the first few in words."""

    lost: int = 0
    duplicates: int = 0
    reordered: int = 0
    misdelivered: int = 0
    damaged: int = 0
    bad_acks: int = 0
    deliveries: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """All violations together."""
        return self.lost + self.duplicates + self.reordered + self.misdelivered + self.damaged + self.bad_acks


MOST_EXAMPLES = 10


@dataclass
class _Pair:
    """A stream at one receiver: the next number expected (None: nothing came yet), from where on it is owed, what is
    missing."""

    owed_from: int
    next: int | None = None
    missing: set[int] = field(default_factory=set)


class DeliveryChecker:
    """Takes events one by one; `finish` gives the verdict. A `sent` must come before its `received` and its `acked`."""

    def __init__(self) -> None:
        self._verdict = Verdict()
        self._checksums: dict[Key, list[int]] = {}
        self._members: dict[str, dict[str, dict[str, _Pair]]] = {}
        self._acked: dict[Key, int] = {}

    def take(self, event: Event) -> None:
        """One event.

        Raises:
            ValueError: numbers of a stream are not consecutive from 0 (the log itself is wrong).
        """
        if event.kind == "sent":
            self._sent(event)
        elif event.kind == "received":
            self._received(event)
        elif event.kind == "joined":
            self._joined(event.receiver, event.target)
        elif event.kind == "acked":
            self._take_ack(event)
        else:
            self._left(event.receiver, event.target)

    def _sent(self, event: Event) -> None:
        log = self._checksums.setdefault((event.sender, event.target), [])
        if event.number != len(log):
            raise ValueError(f"{event.sender} sent number {event.number} to {event.target} after {len(log) - 1}")
        log.append(event.checksum)

    def _joined(self, receiver: str, target: str) -> None:
        self._members.setdefault(target, {})[receiver] = {
            sender: _Pair(len(log)) for (sender, to), log in self._checksums.items() if to == target
        }

    def _left(self, receiver: str, target: str) -> None:
        pairs = self._members.get(target, {}).pop(receiver, {})
        for sender, pair in pairs.items():
            self._lose(len(pair.missing), sender, target, receiver)

    def _received(self, event: Event) -> None:
        key = (event.sender, event.target)
        log = self._checksums.get(key, [])
        self._verdict.deliveries += 1
        if event.number >= len(log) or log[event.number] != event.checksum:
            self._count("damaged", event)
            return
        pairs = self._members.get(event.target, {}).get(event.receiver)
        if pairs is None:
            self._count("misdelivered", event)
            return
        pair = pairs.setdefault(event.sender, _Pair(0))
        expected = min(pair.owed_from, event.number) if pair.next is None else pair.next
        if event.number >= expected:
            pair.missing.update(range(expected, event.number))
            pair.next = event.number + 1
        elif event.number in pair.missing:
            pair.missing.discard(event.number)
            self._count("reordered", event)
        else:
            self._count("duplicates", event)

    def _take_ack(self, event: Event) -> None:
        key = (event.sender, event.target)
        if event.number != self._acked.get(key, 0) or event.number >= len(self._checksums.get(key, [])):
            self._count("bad_acks", event)
        self._acked[key] = event.number + 1

    def _count(self, fault: str, event: Event) -> None:
        setattr(self._verdict, fault, getattr(self._verdict, fault) + 1)
        self._example(
            f"{fault}: {event.sender} -> {event.target} number {event.number} at {event.receiver or 'the sender'}"
        )

    def _lose(self, count: int, sender: str, target: str, receiver: str) -> None:
        if count:
            self._verdict.lost += count
            self._example(f"lost: {count} from {sender} -> {target} at {receiver}")

    def _example(self, text: str) -> None:
        if len(self._verdict.examples) < MOST_EXAMPLES:
            self._verdict.examples.append(text)

    def finish(self) -> Verdict:
        """The verdict, with whatever has not arrived counted as lost."""
        for (sender, target), log in self._checksums.items():
            for receiver, pairs in self._members.get(target, {}).items():
                pair = pairs.get(sender, _Pair(0))
                tail = len(log) - (pair.owed_from if pair.next is None else pair.next)
                self._lose(len(pair.missing) + max(tail, 0), sender, target, receiver)
        return self._verdict


def check(events: Iterable[Event]) -> Verdict:
    """Check a whole log.

    Raises:
        ValueError: the log itself is wrong.
    """
    checker = DeliveryChecker()
    for event in events:
        checker.take(event)
    return checker.finish()


def count_disorder(logs: Iterable[bytes], group_of: Sequence[int]) -> int:
    """How many messages have no place in any one order of their group that all its receivers could have seen (C3).

    Args:
        logs: `Engine.deliveries_log` of each process: 32-bit receiver, stream and number of each delivery.
        group_of: the group of each stream.

    What a receiver saw next to each other is an edge between two messages. One order for all exists exactly if these
    edges have no circle; so messages before which nothing comes are taken away until there are none, and of the rest
    those after which nothing comes. Whatever is left stands in a circle, or between two.
    """
    after: dict[int, set[int]] = defaultdict(set)
    last: dict[tuple[int, int], int] = {}
    for log in logs:
        fields = memoryview(log).cast("I")
        for receiver, stream, number in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
            message = stream << 32 | number
            place = receiver, group_of[stream]
            before = last.get(place)
            if before is not None and before != message:
                after[before].add(message)
            last[place] = message
    return len(_take_away(_turned(_take_away(after))))


def _take_away(after: dict[int, set[int]]) -> dict[int, set[int]]:
    """The edges that are left when messages are taken away, one by one, that no edge leads to."""
    waits: dict[int, int] = dict.fromkeys(after, 0)
    for followers in after.values():
        for message in followers:
            waits[message] = waits.get(message, 0) + 1
    free = [message for message, count in waits.items() if not count]
    while free:
        message = free.pop()
        del waits[message]
        for follower in after.get(message, ()):
            waits[follower] -= 1
            if not waits[follower]:
                free.append(follower)
    return {message: after.get(message, set()) & waits.keys() for message in waits}


def _turned(after: dict[int, set[int]]) -> dict[int, set[int]]:
    """The same edges, pointing back."""
    before: dict[int, set[int]] = {message: set() for message in after}
    for message, followers in after.items():
        for follower in followers:
            before[follower].add(message)
    return before
