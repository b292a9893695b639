"""What clients see of a broker, through real nodes and real sockets: order, `ok`s and joins, whenever it answers."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from starlight.brokers.base import Broker
from starlight.brokers.memory import MemoryBroker
from starlight.channels.client import Client
from starlight.channels.handlers import Handlers
from starlight.channels.under_way import LIMIT
from starlight.config.settings import Settings
from starlight.server.node import Node
from tests.brokers.late import FAULTS, REFUSED, Cluster
from tests.brokers.plays import Play
from tests.support.fakes import eventually
from tests.support.wire_client import WireClient

Start = Callable[..., Awaitable[Node]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts nodes with a broker each; ends them with the test."""
    async with AsyncExitStack() as stack:

        async def start(broker: Broker | None = None, channels: dict[str, Any] | None = None) -> Node:
            handlers = Handlers()
            handlers.on("plain")(lambda client, data: None)

            @handlers.on("failing")
            async def failing(client: Client, data: object) -> None:
                raise ValueError

            @handlers.on("slow")
            async def slow(client: Client, data: object) -> None:
                await asyncio.sleep(0.001)

            settings = Settings(port=0, drain_timeout_s=5)
            node = Node(settings, handlers=handlers, broker=broker, channels=channels)
            return await stack.enter_async_context(node)

        yield start


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
async def node(start: Start, cluster: Cluster) -> Node:
    return await start(cluster.broker())


def left_behind(node: Node) -> dict[str, int]:
    return {name: count for name, count in node.hub.counters().items() if count}


# --- random plays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["memory", "late", "late-of-two"])
async def test_a_play_keeps_the_contract(start: Start, kind: str, seed: int):
    cluster = Cluster(seed)
    if kind == "memory":
        nodes = [await start(MemoryBroker())]
    else:
        nodes = [await start(cluster.broker()) for _ in range(2 if kind == "late-of-two" else 1)]
    play = Play(nodes, seed)
    await play.run(bursts=12)
    await play.end()
    play.check()
    await eventually(lambda: not cluster.waiting and not any(map(left_behind, nodes)))
    assert [broker.follows for broker in cluster.brokers] == [set() for _ in cluster.brokers]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_play_finds_a_broker_that_breaks_the_law(start: Start, fault: str):
    play = Play([await start(Cluster(fault=fault).broker())], seed=0)
    await play.run(bursts=12)
    await play.end()
    with pytest.raises(AssertionError):
        play.check()


# --- one thing at a time ---------------------------------------------------------------------------------------------


async def test_replies_come_in_the_order_of_the_requests_whatever_is_answered_first(node: Node, cluster: Cluster):
    ann = await WireClient.login(node.url, "ann")
    cluster.hold()
    await ann.say("publish", id=1, channel="c", data=1)
    await ann.say("ping", id=2)
    await ann.say("direct", id=3, to="zoe", data=1)
    await ann.say("direct", id=4, to="ann", data=1)
    await ann.say("broadcast", id=5, data=1)
    await ann.say("presence", id=6, channel="c")
    await ann.say("publish", id=7, channel=REFUSED, data=1)
    await ann.say("history", id=8, channel="c")
    await ann.say("leave", id=9, channel="c")
    await ann.say("plain", id=10)
    await eventually(lambda: cluster.waiting == 6)  # all but ping and history began, and what follows them waits
    cluster.go_on()
    heard = await ann.hear_until("pong")
    while heard[-1].get("id") != 10:
        heard.append(await ann.hear())
    replies = [(message["id"], message.get("code", message["type"])) for message in heard if "id" in message]
    assert replies == [
        (1, "ok"), (2, "pong"), (3, 120), (4, "ok"), (5, "ok"), (6, "ok"), (7, 108), (8, 108), (9, "ok"), (10, "ok"),
    ]  # fmt: skip


async def test_no_more_is_under_way_than_the_limit_and_the_rest_waits(node: Node, cluster: Cluster):
    ann = await WireClient.login(node.url, "ann")
    cluster.hold()
    for number in range(4 * LIMIT):
        await ann.say("publish", id=number, channel="c", data=number)
    await eventually(lambda: cluster.waiting == LIMIT)
    await asyncio.sleep(0.05)
    assert cluster.waiting == LIMIT
    cluster.go_on()
    assert [(await ann.hear())["id"] for _ in range(4 * LIMIT)] == list(range(4 * LIMIT))


async def test_what_needs_no_broker_counts_as_well(node: Node, cluster: Cluster):
    """Or a client would fill the node with pongs behind one publish."""
    ann = await WireClient.login(node.url, "ann")
    cluster.hold()
    await ann.say("publish", channel="c", data=1)
    for number in range(4 * LIMIT):
        await ann.say("ping", id=number)
    [client] = node.hub.clients()
    await eventually(lambda: client.under_way is not None and client.under_way.is_full)
    await asyncio.sleep(0.05)
    assert client.under_way is not None and len(client.under_way) == LIMIT
    cluster.go_on()
    assert [(await ann.hear())["id"] for _ in range(4 * LIMIT)] == list(range(4 * LIMIT))
    assert client.under_way is None


@pytest.mark.parametrize("channels", [["c"], ["c", "d", REFUSED]])
async def test_a_client_that_joins_hears_the_ok_first(node: Node, cluster: Cluster, channels: list[str]):
    ann, bob = await WireClient.login(node.url, "ann"), await WireClient.login(node.url, "bob")
    await bob.ask("join", channel="c")
    cluster.hold()
    if len(channels) == 1:
        await ann.say("join", id=1, channel="c")
    else:
        await ann.say("join", id=1, channels=[{"channel": name} for name in channels])
    await ann.say("publish", id=2, channel="c", data="own")
    await bob.say("publish", channel="c", data="bob's")
    await eventually(lambda: cluster.waiting)
    cluster.go_on()
    heard = [await ann.hear()]
    while heard[-1].get("id") != 2:
        heard.append(await ann.hear())
    assert (heard[0]["type"], heard[0]["id"]) == ("ok", 1)
    if len(channels) > 1:
        assert [one.get("error", {}).get("code") for one in heard[0]["channels"]] == [None, None, 108]
    assert "own" in [message.get("data") for message in heard[1:-1]]


async def test_two_that_join_at_once_follow_the_channel_once(node: Node, cluster: Cluster):
    ann, bob = await WireClient.login(node.url, "ann"), await WireClient.login(node.url, "bob")
    cluster.hold()
    await ann.say("join", id=1, channel="c")
    await bob.say("join", id=1, channel="c")
    await asyncio.sleep(0.05)
    assert cluster.waiting == 1  # a second `follow` fails in the broker
    cluster.go_on()
    assert (await ann.hear())["type"] == (await bob.hear())["type"] == "ok"


async def test_a_refused_join_is_told_and_may_be_tried_again(node: Node):
    ann = await WireClient.login(node.url, "ann")
    for _ in range(2):
        assert (await ann.ask("join", channel=REFUSED))["code"] == 108
    assert node.hub.counters()["channels"] == 0


async def test_joins_under_way_count_for_the_limit_of_the_channel(start: Start, cluster: Cluster):
    node = await start(cluster.broker(), channels={"*": {"clients_limit": 1}})
    ann, bob = await WireClient.login(node.url, "ann"), await WireClient.login(node.url, "bob")
    cluster.hold()
    await ann.say("join", id=1, channel="c")
    await eventually(lambda: cluster.waiting)
    assert (await bob.ask("join", channel="c"))["code"] == 106
    cluster.go_on()
    assert (await ann.hear())["type"] == "ok"


@pytest.mark.parametrize("waits_for", ["room", "join", "leave", "handler"])
async def test_a_client_that_goes_leaves_nothing_behind(node: Node, cluster: Cluster, waits_for: str):
    ann = await WireClient.login(node.url, "ann-of-this-test")
    tasks = len(asyncio.all_tasks())
    cluster.hold()
    await ann.say("presence", id="first", channel="c")
    if waits_for == "join":
        cluster.go_on()
        await ann.hear()
        cluster.hold()
        await ann.say("join", channel="c")
    for number in range(2 * LIMIT if waits_for == "room" else 3):
        await ann.say("publish", id=number, channel="c", data=1)
    if waits_for == "leave":
        await ann.say("leave", id="leave", channel="c")
    if waits_for == "handler":
        await ann.say("slow", id="slow")
    await eventually(lambda: cluster.waiting and len(asyncio.all_tasks()) > tasks)
    ann.socket.transport.abort()
    await eventually(lambda: not node.connections)
    assert node.hub.counters()["clients"] == 0
    cluster.go_on()
    await eventually(lambda: not cluster.waiting)
    await eventually(lambda: left_behind(node) == {})
    assert cluster.brokers[0].follows == set()
    gc.collect()
    assert [it for it in gc.get_objects() if isinstance(it, Client) and it.user == "ann-of-this-test"] == []


async def test_a_handler_that_fails_behind_something_under_way_is_answered(node: Node, cluster: Cluster):
    ann = await WireClient.login(node.url, "ann")
    cluster.hold()
    await ann.say("publish", id=1, channel="c", data=1)
    await ann.say("failing", id=2)
    await eventually(lambda: cluster.waiting)
    cluster.go_on()
    assert [(await ann.hear()).get("code") for _ in range(2)] == [None, 100]
    [client] = node.hub.clients()
    assert not client.is_busy


async def test_the_application_does_not_wait(start: Start, cluster: Cluster, caplog: pytest.LogCaptureFixture):
    node, other = await start(cluster.broker()), await start(cluster.broker())
    ann, bob = await WireClient.login(node.url, "ann"), await WireClient.login(other.url, "bob")
    await ann.ask("join", channel="c")
    await bob.ask("join", channel="c")
    hub = node.hub
    assert (hub.push_to_channel("c", b"1"), hub.push_to_user("ann", b"2"), hub.push_to_everyone(b"3")) == (1, 1, 1)
    for client in (ann, bob):
        heard = [await client.hear() for _ in range(3 if client is ann else 2)]
        assert sorted(message["data"] for message in heard) == [1, 2, 3] if client is ann else [1, 3]
        assert {message.get("from") for message in heard} == {None}
    assert hub.push_to_user("bob", b"4") == 0
    assert await bob.hear() == {"type": "server", "data": 4}
    with caplog.at_level(logging.ERROR):
        hub.push_to_channel(REFUSED, b"1")
        await eventually(lambda: "refused" in caplog.text)


async def test_a_revocation_ends_clients_of_other_nodes(start: Start, cluster: Cluster):
    node, other = await start(cluster.broker()), await start(cluster.broker())
    ann = await WireClient.login(other.url, "ann")
    assert node.hub.revoke_user("ann") == 0
    assert (await ann.closed())[0] == 4503
