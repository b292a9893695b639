"""A broker that answers later: what a real engine does to a node, without the engine.

Brokers of one `Cluster` are nodes of one system. Every request waits in a queue of its channel or user, and so does
what each node is still to be told. A step takes one thing from a queue picked at random, and answers come in any order,
so only what `starlight.brokers.base` promises holds: order within a channel at each node, delivery before the answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from random import Random
from typing import Any, NoReturn

from starlight.brokers.base import Deliverer, Later, Present, RevokedKind, Sender
from starlight.close_codes import ErrorCode
from starlight.errors import RequestError

REFUSED = "refused"
"""A channel that takes no publications, and cannot be followed."""


FAULTS = ("early", "twice", "lost", "order")
"""An answer before the delivery; a delivery too many; none; in another order."""


class Cluster:
    """What late brokers have in common. A test may hold it, and then nothing happens until it goes on.

    Args:
        seed: of the order in which things happen.
        fault: which law of publications it breaks now and then: one of `FAULTS`; none by default.
    """

    def __init__(self, seed: int = 0, fault: str = "") -> None:
        self.fault = fault
        self.brokers: list[Late] = []
        self._random = Random(seed)
        self._queues: dict[Hashable, deque[Callable[[], None]]] = {}
        self._n_answers = 0
        self._is_scheduled = False
        self._is_held = False

    @property
    def waiting(self) -> int:
        """How many steps are still to be taken."""
        return sum(map(len, self._queues.values()))

    def broker(self) -> Late:
        """The broker of one more node."""
        self.brokers.append(Late(self, len(self.brokers)))
        return self.brokers[-1]

    def hold(self) -> None:
        self._is_held = True

    def go_on(self) -> None:
        self._is_held = False
        self._schedule()

    def is_at_fault(self, fault: str) -> bool:
        """Whether to break that law now."""
        return fault == self.fault and self._random.random() < 0.2

    def put(self, key: Hashable, step: Callable[[], None]) -> None:
        """Take a step behind those with the same key."""
        self._queues.setdefault(key, deque()).append(step)
        self._schedule()

    def answer(self, later: Later[Any], answer: Any) -> None:
        """Answer at some time."""
        self._n_answers += 1
        self.put(("answer", self._n_answers), lambda: later.answer(answer))

    def _schedule(self) -> None:
        if self._queues and not self._is_scheduled and not self._is_held:
            self._is_scheduled = True
            delay_s = self._random.choice((0.0, 0.0, 0.0, 0.001))
            asyncio.get_running_loop().call_later(delay_s, self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self._is_held:
            return
        for _ in range(self._random.randint(1, 8)):
            if not self._queues:
                return
            key = self._random.choice(list(self._queues))
            queue = self._queues[key]
            step = queue.popleft()
            if not queue:
                del self._queues[key]
            step()
        self._schedule()


class Late:
    """One node's broker."""

    answers_at_once = False

    def __init__(self, cluster: Cluster, number: int) -> None:
        self._cluster = cluster
        self._number = number
        self._wanted: set[str] = set()
        self.followed: set[str] = set()
        self.deliverer: Deliverer

    def attach(self, deliverer: Deliverer, /) -> None:
        self.deliverer = deliverer

    @property
    def follows(self) -> set[str]:
        """Channels that the node wants."""
        return self._wanted

    def publish(self, channel: str, sender: Sender, data: Any, /) -> Later[int]:
        later: Later[int] = Later()
        key = ("channel", channel)

        def accept() -> None:
            if channel == REFUSED:
                self._cluster.answer(later, RequestError(ErrorCode.NOT_AVAILABLE, "refused"))
                return
            for broker in self._cluster.brokers:
                if channel in broker.followed:
                    broker.tell(key, lambda broker=broker: told(broker))  # type: ignore[misc]
            if channel not in self.followed:
                self._cluster.answer(later, 0)

        def told(broker: Late) -> None:
            seen = self._seen_by(broker, sender)
            if self._cluster.is_at_fault("early") and broker is self:
                later.answer(1)
                self._cluster.put(object(), lambda: broker.deliverer.deliver_publication(channel, seen, bytes(data)))
                return
            reached = 0
            if not self._cluster.is_at_fault("lost"):
                reached = broker.deliverer.deliver_publication(channel, seen, bytes(data))
            if self._cluster.is_at_fault("twice"):
                broker.deliverer.deliver_publication(channel, seen, bytes(data))
            if broker is self:
                self._cluster.answer(later, reached)

        self._cluster.put(object() if self._cluster.is_at_fault("order") else key, accept)
        return later

    def direct(self, user: str, sender: Sender, data: Any, /) -> Later[int]:
        def deliver(broker: Late) -> int | RequestError:
            try:
                return broker.deliverer.deliver_direct(user, self._seen_by(broker, sender), bytes(data))
            except RequestError as error:
                return error

        def add_up(counts: dict[Late, int | RequestError]) -> int | RequestError:
            mine = counts[self]
            if isinstance(mine, int):
                return mine
            return 0 if any(isinstance(count, int) for count in counts.values()) else mine

        return self._ask_all(("user", user), deliver, add_up)

    def broadcast(self, sender: Sender, data: Any, /) -> Later[int]:
        def deliver(broker: Late) -> int:
            return broker.deliverer.deliver_broadcast(self._seen_by(broker, sender), bytes(data))

        return self._ask_all("everyone", deliver, lambda counts: counts[self])

    def present(self, channel: str, limit: int, /) -> Later[Present]:
        def add_up(found: dict[Late, Present]) -> Present:
            users = dict.fromkeys(user for present in found.values() for user in present.users)
            return Present(list(users)[:limit], sum(present.clients for present in found.values()))

        return self._ask_all(
            ("presence", channel), lambda broker: broker.deliverer.list_present(channel, limit), add_up
        )

    def revoke(self, kind: RevokedKind, name: str, seconds: float, by: str, /) -> Later[int]:
        return self._ask_all(
            "control",
            lambda broker: broker.deliverer.end_revoked(kind, name, seconds, by),
            lambda counts: counts[self],
        )

    def follow(self, channel: str, /) -> Later[None]:
        assert channel not in self._wanted, "it follows that channel already"
        self._wanted.add(channel)
        later: Later[None] = Later()

        def follow() -> None:
            if channel == REFUSED:
                self._wanted.discard(channel)
                self._cluster.answer(later, RequestError(ErrorCode.NOT_AVAILABLE, "refused"))
                return
            self.followed.add(channel)
            self._cluster.answer(later, None)

        self._cluster.put(("channel", channel), follow)
        return later

    def unfollow(self, channel: str, /) -> None:
        assert channel in self.followed, "the answer to follow comes first"
        self._wanted.remove(channel)
        self._cluster.put(("channel", channel), lambda: self.followed.discard(channel))

    def history(self, channel: str, /) -> NoReturn:
        raise RequestError(ErrorCode.NOT_AVAILABLE, "history: not available")

    def _ask_all(self, key: Hashable, ask: Callable[[Late], Any], add_up: Callable[[dict[Late, Any]], Any]) -> Any:
        """Ask every node, in any order, and answer when all have said something."""
        later: Later[Any] = Later()
        told: dict[Late, Any] = {}

        def accept() -> None:
            for broker in self._cluster.brokers:
                broker.tell(key, lambda broker=broker: ask_one(broker))  # type: ignore[misc]

        def ask_one(broker: Late) -> None:
            told[broker] = ask(broker)
            if len(told) == len(self._cluster.brokers):
                self._cluster.answer(later, add_up(told))

        self._cluster.put(key, accept)
        return later

    def tell(self, key: Hashable, step: Callable[[], None]) -> None:
        self._cluster.put((self._number, key), step)

    def _seen_by(self, broker: Late, sender: Sender) -> Sender:
        """A sender of this node as it arrives at one: only its names come to another."""
        return sender if broker is self else Sender(sender.id, sender.user)
