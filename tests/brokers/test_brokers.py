"""The law of the seam (`starlight.brokers.base`), for every broker: nodes that write down what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from starlight.brokers.base import Broker, Later, Present, RevokedKind, Sender
from starlight.brokers.memory import MemoryBroker
from starlight.close_codes import ErrorCode
from starlight.errors import RequestError
from tests.brokers.late import REFUSED, Cluster

ANN, BOB = Sender("n1-1", "ann"), Sender("n1-2", "bob")


class Node:
    """What a broker delivers to: it writes all of it down. `users` are connected here, once each."""

    def __init__(self, broker: Broker, *users: str) -> None:
        self.broker = broker
        self.users = users
        self.log: list[tuple[Any, ...]] = []
        broker.attach(self)

    def deliver_publication(self, channel: str, sender: Sender, data: Any, /) -> int:
        self.log.append(("publication", channel, sender.user, bytes(data)))
        return len(self.users)

    def deliver_direct(self, user: str, sender: Sender, data: Any, /) -> int:
        if user not in self.users:
            raise RequestError(ErrorCode.NOT_CONNECTED, "not connected")
        self.log.append(("direct", user, sender.user, bytes(data)))
        return 1

    def deliver_broadcast(self, sender: Sender, data: Any, /) -> int:
        self.log.append(("broadcast", sender.user, bytes(data)))
        return len(self.users)

    def list_present(self, channel: str, limit: int, /) -> Present:
        return Present(list(self.users)[:limit], len(self.users))

    def end_revoked(self, kind: RevokedKind, name: str, seconds: float, by: str, /) -> int:
        self.log.append(("revoke", kind, name, seconds, by))
        return self.users.count(name)

    async def ask(self, call: Callable[..., Any], *args: Any) -> Any:
        """The answer of a broker, which is written down when it comes. Raises what refuses."""
        answer = call(*args)
        if isinstance(answer, Later):
            coming: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            answer.then(coming.set_result)
            answer = await asyncio.wait_for(coming, 10)
        if isinstance(answer, RequestError):
            raise answer
        self.log.append(("answer", *args[:1]))
        return answer


MAKERS: dict[str, Callable[[], list[Broker]]] = {
    "memory": lambda: [MemoryBroker()],
    "late": lambda: [Cluster().broker()],
    "late-of-two": lambda: [(cluster := Cluster(seed=7)).broker(), cluster.broker()],
}


@pytest.fixture(params=MAKERS)
async def nodes(request: pytest.FixtureRequest) -> list[Node]:
    """The first node has ann and bob, the others, if any, have eve each."""
    brokers = MAKERS[request.param]()
    return [Node(broker, *(("ann", "bob") if broker is brokers[0] else ("eve",))) for broker in brokers]


@pytest.fixture
def node(nodes: list[Node]) -> Node:
    return nodes[0]


async def test_a_publication_is_delivered_before_its_answer(nodes: list[Node], node: Node):
    for each in nodes:
        await each.ask(each.broker.follow, "c")
        each.log.clear()
    assert await node.ask(node.broker.publish, "c", ANN, b"1") == 2
    assert node.log == [("publication", "c", "ann", b"1"), ("answer", "c")]


async def test_each_node_gets_a_channel_in_one_order_that_keeps_each_senders(nodes: list[Node], node: Node):
    for each in nodes:
        await each.ask(each.broker.follow, "c")
        await each.ask(each.broker.follow, "d")
    sent = [(channel, sender, number) for number in range(50) for channel in "cd" for sender in (ANN, BOB)]
    await asyncio.gather(
        *[node.ask(node.broker.publish, channel, sender, b"%d" % number) for channel, sender, number in sent],
        *[nodes[-1].ask(nodes[-1].broker.publish, "c", Sender("n2-1", "eve"), b"%d" % number) for number in range(50)],
    )
    while any(sum(entry[0] == "publication" for entry in each.log) < 250 for each in nodes):
        await asyncio.sleep(0.001)
    for each in nodes:
        for channel in "cd":
            for user in ("ann", "bob", "eve")[: 3 if channel == "c" else 2]:
                got = [entry[3] for entry in each.log if entry[:3] == ("publication", channel, user)]
                assert got == [b"%d" % number for number in range(50)]


async def test_what_is_published_to_a_channel_that_is_not_followed_reaches_no_other_node(nodes: list[Node], node: Node):
    await node.ask(node.broker.follow, "c")
    await asyncio.gather(*[node.ask(node.broker.publish, "c", ANN, b"%d" % number) for number in range(20)])
    assert all(each.log == [] for each in nodes[1:])


async def test_a_channel_may_be_followed_again(nodes: list[Node], node: Node):
    for _ in range(3):
        await node.ask(node.broker.follow, "c")
        assert await node.ask(node.broker.publish, "c", ANN, b"1") == 2
        node.broker.unfollow("c")


async def test_the_sender_arrives_with_its_names(nodes: list[Node], monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[str, str | None]] = []
    for each in nodes:
        monkeypatch.setattr(each, "deliver_broadcast", lambda sender, data: seen.append((sender.id, sender.user)) or 0)
        each.broker.attach(each)
    await nodes[0].ask(nodes[0].broker.broadcast, ANN, b"1")
    await nodes[0].ask(nodes[0].broker.broadcast, Sender("", None), b"2")
    assert seen == [("n1-1", "ann")] * len(nodes) + [("", None)] * len(nodes)


async def test_a_direct_reaches_the_nodes_that_have_the_user(nodes: list[Node], node: Node):
    assert await node.ask(node.broker.direct, "bob", ANN, b"1") == 1
    assert node.log == [("direct", "bob", "ann", b"1"), ("answer", "bob")]
    if nodes[1:]:
        assert await node.ask(node.broker.direct, "eve", ANN, b"2") == 0
        assert nodes[1].log == [("direct", "eve", "ann", b"2")]


async def test_a_direct_to_a_user_of_no_node_is_refused(node: Node):
    with pytest.raises(RequestError) as refused:
        await node.ask(node.broker.direct, "zoe", ANN, b"1")
    assert refused.value.code == ErrorCode.NOT_CONNECTED


async def test_directs_to_one_user_keep_their_order(node: Node):
    await asyncio.gather(*[node.ask(node.broker.direct, "bob", ANN, b"%d" % number) for number in range(50)])
    got = [entry[3] for entry in node.log if entry[0] == "direct"]
    assert got == [b"%d" % number for number in range(50)]


async def test_a_broadcast_reaches_every_node_and_counts_its_own_clients(nodes: list[Node], node: Node):
    assert await node.ask(node.broker.broadcast, ANN, b"1") == 2
    assert [each.log[0] for each in nodes] == [("broadcast", "ann", b"1")] * len(nodes)


async def test_presence_is_gathered_from_all_nodes(nodes: list[Node], node: Node):
    found = await node.ask(node.broker.present, "c", 10)
    assert (sorted(found.users), found.clients) == (["ann", "bob", "eve"][: 1 + len(nodes)], 1 + len(nodes))
    assert len((await node.ask(node.broker.present, "c", 1)).users) == 1


async def test_a_revocation_reaches_every_node_and_counts_the_clients_that_it_ended_here(nodes: list[Node], node: Node):
    assert await node.ask(node.broker.revoke, "user", "bob", 60.0, "by key") == 1
    assert [each.log[0] for each in nodes] == [("revoke", "user", "bob", 60.0, "by key")] * len(nodes)


async def test_no_broker_keeps_history_yet(node: Node):
    with pytest.raises(RequestError) as refused:
        node.broker.history("c")
    assert refused.value.code == ErrorCode.NOT_AVAILABLE


async def test_what_is_refused_is_not_delivered(nodes: list[Node], node: Node, request: pytest.FixtureRequest):
    if "memory" in request.node.name:
        pytest.skip("it refuses nothing")
    for call in (lambda: node.broker.publish(REFUSED, ANN, b"1"), lambda: node.broker.follow(REFUSED)):
        with pytest.raises(RequestError):
            await node.ask(call)
    assert all(each.log == [] for each in nodes)


def test_memory_answers_at_once():
    node = Node(memory := MemoryBroker(), "ann")
    assert (memory.publish("c", ANN, b"1"), memory.broadcast(ANN, b"2"), memory.direct("ann", BOB, b"3")) == (1, 1, 1)
    assert (memory.follow("c"), memory.present("c", 1)) == (None, Present(["ann"], 1))
    assert [entry[0] for entry in node.log] == ["publication", "broadcast", "direct"]


# --- Later -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_asked_first", [True, False])
def test_an_answer_is_heard_once_whenever_one_asks(is_asked_first: bool):
    later: Later[int] = Later()
    heard: list[int | RequestError] = []
    steps = [lambda: later.then(heard.append), lambda: later.answer(7)]
    for step in steps if is_asked_first else steps[::-1]:
        step()
    assert heard == [7]
