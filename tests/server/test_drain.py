"""starlight.server.drain: who is sent away when, at what rate, and what nobody loses by it."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from starlight.channels.client import Client
from starlight.channels.handlers import Handlers
from starlight.config.settings import Settings
from starlight.server.drain import BURST_S, RETRY_MAX_MS, RETRY_MIN_MS
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.raw_client import RawClient, request
from tests.support.wire_client import WireClient

WIRES = ("ws", "wss")


def small(**settings: object) -> Settings:
    return Settings(**{"port": 0, "drain_timeout_s": 5, **settings})


# --- sending away ----------------------------------------------------------------------------------------------------


async def test_drain_says_bye_closes_with_1001_and_ends():
    node = Node(small())
    await node.start()
    clients = [await WireClient.login(node.url, f"user{number}") for number in range(20)]
    silent = await connect(node.url)  # connected, never logged in
    url = node.url
    ends = [asyncio.create_task(client.hear_until("bye")) for client in clients]
    await asyncio.wait_for(asyncio.gather(node.drain(), node.drain()), 10)
    retries = []
    for client, end in zip(clients, ends, strict=True):
        bye = (await end)[-1]
        code, reason = await client.closed()
        assert (code, reason) == (1001, f"drain;retry={bye['retry_ms']}")
        assert RETRY_MIN_MS <= bye["retry_ms"] <= RETRY_MAX_MS
        retries.append(bye["retry_ms"])
    assert len(set(retries)) > 1  # they don't all come back at once
    assert (await WireClient(silent).closed())[0] == 1001
    assert not node.is_serving
    with pytest.raises(OSError):
        await connect(url)


async def test_drain_flushes_what_was_sent_before_it():
    async with Node(small()) as node:
        ann, bob = await WireClient.login(node.url, "ann"), await WireClient.login(node.url, "bob")
        for number in range(500):
            await ann.say("direct", to="bob", data=number)
        assert (await ann.ask("ping"))["type"] == "pong"
    heard = await bob.hear_until("bye")
    assert [message["data"] for message in heard[:-1]] == list(range(500))


async def test_drain_waits_for_handlers_and_hooks_that_are_under_way():
    events: list[str] = []
    handlers = Handlers()

    @handlers.on_disconnect
    async def out(client: Client) -> None:
        await asyncio.sleep(0.05)
        events.append(client.user)

    async with Node(small(), handlers=handlers) as node:
        await WireClient.login(node.url, "ann")
    assert events == ["ann"]


async def test_drain_cuts_off_who_does_not_end_in_time(wire: str):
    if wire == "wss":
        pytest.skip("its client doesn't speak TLS")
    async with Node(small(drain_timeout_s=0.1)) as node:
        loop = asyncio.get_running_loop()
        raw = socket.create_connection(("127.0.0.1", node.port))
        raw.setblocking(False)
        request = (
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{node.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await loop.sock_sendall(raw, request.encode())
        assert b"101" in await asyncio.wait_for(loop.sock_recv(raw, 4096), 10)
    await eventually(lambda: node.connections == 0)
    raw.close()


async def test_not_ready_comes_first_and_the_node_serves_on_until_the_notice_is_over():
    node = Node(small(drain_notice_s=0.5))
    assert not node.is_listening
    await node.start()
    assert node.is_listening and not node.is_draining
    ann = await WireClient.login(node.url, "ann")
    draining = asyncio.ensure_future(node.drain())
    await node.drain_begun()
    assert node.is_draining and node.is_serving
    bob = await WireClient.login(node.url, "bob")  # it still listens
    await bob.say("direct", to="ann", data="hi")
    assert (await ann.hear())["data"] == "hi"
    assert (await asyncio.gather(ann.closed(), bob.closed()))[0][0] == 1001
    await draining
    assert not node.is_listening


async def test_the_notice_is_part_of_the_drain_time():
    node = Node(small(drain_notice_s=600, drain_timeout_s=0.1))
    await node.start()
    await asyncio.wait_for(node.drain(), 10)


async def test_a_drain_without_time_closes_everything_at_once():
    node = Node(small(drain_timeout_s=0, drain_rate=1))
    await node.start()
    clients = [await WireClient.login(node.url, f"user{number}") for number in range(20)]
    await asyncio.wait_for(node.drain(), 5)
    assert node.connections == 0
    for client in clients:
        with pytest.raises(ConnectionClosed):
            await client.hear_until("never")


async def test_a_handshake_under_way_is_waited_for_and_then_sent_away(wire: str):
    if wire == "wss":
        pytest.skip("its client doesn't speak TLS")
    node = Node(small())
    await node.start()
    late = await RawClient.connect(node.port)
    await late.send(request()[:20])
    await eventually(lambda: node.connections == 1)
    draining = asyncio.ensure_future(node.drain())
    await asyncio.sleep(0.1)
    await late.send(request()[20:])
    assert (await late.head()).startswith(b"HTTP/1.1 101 ")
    assert (await late.hear())["type"] == "bye"
    late.close()
    await asyncio.wait_for(draining, 10)


async def test_a_drain_goes_on_without_its_first_caller_and_others_join_it():
    node = Node(small(drain_timeout_s=60, drain_rate=20))
    await node.start()
    clients = [await WireClient.login(node.url, f"user{number}") for number in range(20)]
    ends = [asyncio.create_task(client.hear_until("bye")) for client in clients]
    first = asyncio.create_task(node.drain())
    await node.drain_begun()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert node.is_draining and node.is_serving
    others = [asyncio.create_task(node.drain()) for _ in range(3)]
    await asyncio.wait_for(asyncio.gather(*others), 30)
    assert (node.connections, node.is_serving) == (0, False)
    for client, end in zip(clients, ends, strict=True):
        await end
        assert (await client.closed())[0] == 1001
    await asyncio.wait_for(node.drain(), 10)  # it has drained, and says so to whoever asks later
    assert all(task.done() for task in node._timers)


async def test_a_later_call_may_hurry_a_drain_and_not_prolong_it():
    node = Node(small(drain_timeout_s=3_600, drain_notice_s=3_600))
    await node.start()
    ann = await WireClient.login(node.url, "ann")
    first = asyncio.create_task(node.drain())
    await node.drain_begun()
    longer = asyncio.create_task(node.drain(timeout_s=7_200))
    assert (await ann.ask("ping"))["type"] == "pong"
    assert not first.done()
    await asyncio.wait_for(node.drain(timeout_s=0.5), 20)
    await asyncio.wait_for(asyncio.gather(first, longer), 10)
    assert not node.is_serving


async def test_a_hurry_raises_the_rate():
    node = Node(small(drain_timeout_s=3_600, drain_rate=1))
    await node.start()
    clients = [await WireClient.login(node.url, f"user{number}") for number in range(20)]
    first = asyncio.create_task(node.drain())
    await node.drain_begun()
    await asyncio.wait_for(node.drain(timeout_s=5), 20)
    await asyncio.wait_for(first, 10)
    assert [(await client.closed())[0] for client in clients] == [1001] * 20


async def test_a_program_that_cancels_all_its_tasks_leaves_no_listening_socket():
    node = Node(small(drain_timeout_s=3_600, drain_notice_s=3_600))
    await node.start()
    port = node.port
    draining = asyncio.create_task(node.drain())
    await node.drain_begun()
    await asyncio.sleep(0.01)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    await eventually(lambda: not node.is_serving)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port)):
        pass


# --- the rate --------------------------------------------------------------------------------------------------------


async def test_closes_are_spread_and_their_peak_is_bounded():
    rate, number = 40, 60
    node = Node(small(drain_rate=rate))
    await node.start()
    clients = [await WireClient.login(node.url, f"user{index}") for index in range(number)]
    closed_s: list[float] = []

    async def follow(client: WireClient) -> None:
        await client.hear_until("bye")
        closed_s.append(asyncio.get_running_loop().time())

    await asyncio.gather(node.drain(), *map(follow, clients))
    closed_s.sort()
    assert len(closed_s) == number
    # clients hear it in this same loop, a little later than it was sent: hence the shorter window
    for begin in range(number):
        in_a_second = sum(closed_s[begin] <= when < closed_s[begin] + 0.9 for when in closed_s)
        assert in_a_second <= rate * (1 + 2 * BURST_S)


async def test_the_order_of_closes_is_not_that_of_logins():
    node = Node(small(drain_rate=100))
    await node.start()
    clients = [await WireClient.login(node.url, f"user{index}") for index in range(40)]
    order: list[int] = []

    async def follow(index: int, client: WireClient) -> None:
        await client.hear_until("bye")
        order.append(index)

    await asyncio.gather(node.drain(), *itertools.starmap(follow, enumerate(clients)))
    assert sorted(order) == list(range(40)) != order


async def test_a_rate_that_is_too_low_for_the_drain_time_is_raised_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
):
    node = Node(small(drain_rate=1, drain_timeout_s=2))
    await node.start()
    clients = [await WireClient.login(node.url, f"user{index}") for index in range(30)]
    ends = await asyncio.gather(node.drain(), *(client.closed() for client in clients))
    assert {end[0] for end in ends[1:] if end} == {1001}
    assert "more than drain_rate=1" in caplog.text
    assert "cut off" not in caplog.text


# --- what nobody loses -----------------------------------------------------------------------------------------------


class Talker:
    """A client that publishes numbered messages with ids as long as it may, and hears those of all."""

    def __init__(self, name: str, client: WireClient) -> None:
        self.name = name
        self.client = client
        self.acked: list[str] = []
        self.heard: list[str] = []
        self.code = 0

    async def talk(self) -> None:
        for number in range(100_000):
            try:
                await self.client.say("publish", channel="c", data=f"{self.name}:{number}", id=number)
                await asyncio.sleep(0.01)
            except ConnectionClosed:
                return

    async def listen(self) -> None:
        try:
            while True:
                self.take(await self.client.hear())
        except ConnectionClosed as end:
            assert end.rcvd is not None, "cut off"
            self.code = end.rcvd.code

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "publication":
            self.heard.append(message["data"])
        elif message["type"] == "ok":
            self.acked.append(f"{self.name}:{message['id']}")


async def test_no_acknowledged_message_is_lost_by_who_stays_until_its_own_close():
    """Every subscriber heard the channel from the first message to the last before its own close, without a hole.

    All on a node hear one order, so what one heard must be a beginning of what the last one heard; and who was told
    "ok" had, as a subscriber, its own message before that.
    """
    node = Node(small(drain_rate=15))
    await node.start()
    talkers = [Talker(f"user{n}", await WireClient.login(node.url, f"user{n}")) for n in range(30)]
    for talker in talkers:
        await talker.client.ask("join", channel="c")
    listening = [asyncio.ensure_future(talker.listen()) for talker in talkers]
    talking = [asyncio.ensure_future(talker.talk()) for talker in talkers]
    await asyncio.sleep(0.3)
    before = sum(len(talker.acked) for talker in talkers)
    started_s = time.monotonic()
    await node.drain()
    took_s = time.monotonic() - started_s
    await asyncio.wait_for(asyncio.gather(*listening, *talking), 30)

    assert {talker.code for talker in talkers} == {1001}
    longest = max((talker.heard for talker in talkers), key=len)
    for talker in talkers:
        assert talker.heard == longest[: len(talker.heard)], "a hole, or another order"
        assert set(talker.acked) <= set(talker.heard), "acknowledged, and its own publisher never heard it"
    acked = sum(len(talker.acked) for talker in talkers)
    assert acked > before, f"nobody could publish in the {took_s:.1f} s of the drain"
    assert len({len(talker.heard) for talker in talkers}) > 10, "they were all closed at once"


async def test_logins_of_the_drain_still_end_and_timers_still_run():
    handlers = Handlers()
    ticks: list[float] = []

    @handlers.every(0.05)
    def tick() -> None:
        ticks.append(asyncio.get_running_loop().time())

    node = Node(small(drain_rate=10), handlers=handlers)
    await node.start()
    clients = [await WireClient.login(node.url, f"user{index}") for index in range(10)]
    began_s = asyncio.get_running_loop().time()
    await asyncio.gather(node.drain(), *(client.closed() for client in clients))
    assert sum(when > began_s for when in ticks) >= 3
