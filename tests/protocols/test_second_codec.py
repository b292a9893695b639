"""Two codecs on one node, over real sockets: nothing but a codec knows a protocol's bytes.

One channel has members of both. Each publication is written once in each encoding that has members, and each member
gets its own codec's bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from starlight import _inspect
from starlight.channels.hub import Client
from starlight.config.settings import Settings
from starlight.protocols.base import Codecs
from starlight.protocols.spoken import NATIVE
from starlight.server.node import Node
from tests.support.fakes import eventually
from tests.support.toy import TOY_SUBPROTOCOL, Toy
from tests.support.wire_client import WireClient

FRAMES_ENCODING, LINES_ENCODING, TOY_ENCODING = range(3)


class ToyClient:
    """A client of the toy protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    @classmethod
    async def login(cls, url: str, user: str) -> ToyClient:
        client = cls(await connect(url, compression=None, subprotocols=[TOY_SUBPROTOCOL]))  # type: ignore[list-item]
        await client.say(f"hello|{user}")
        assert await client.hear() == f"welcome|{user}".encode()
        return client

    async def say(self, text: str) -> None:
        await self.socket.send(text.encode())

    async def hear(self) -> bytes:
        async with asyncio.timeout(10):
            heard = await self.socket.recv()
        assert isinstance(heard, bytes), "a text frame on a binary protocol"
        return heard

    async def ask(self, text: str) -> bytes:
        await self.say(text)
        return await self.hear()

    async def closed(self) -> tuple[int, str]:
        with pytest.raises(ConnectionClosed) as end:
            await self.hear()
        assert end.value.rcvd is not None
        return end.value.rcvd.code, end.value.rcvd.reason


@asynccontextmanager
async def node_of_two(**settings: Any) -> AsyncIterator[Node]:
    """A node that speaks both."""
    made = Node(Settings(**{"port": 0, "drain_timeout_s": 2, **settings}), codecs=Codecs(NATIVE, Toy()))

    @made.handlers.on("end")
    def end(client: Client, data: Any) -> None:
        made.hub.revoke_user(data)

    async with made:
        yield made


def written(node: Node) -> list[tuple[int, int]]:
    """(publications, bytes) of each encoding."""
    return _inspect.encoding_counts(node.core)


async def test_a_publication_is_written_once_in_each_encoding_and_each_member_gets_its_own() -> None:
    async with node_of_two() as node:
        natives = [await WireClient.login(node.url, f"n{number}") for number in range(3)]
        toys = [await ToyClient.login(node.url, f"t{number}") for number in range(3)]
        for native in natives:
            assert (await native.ask("join", channel="c"))["channel"] == "c"
        for toy in toys:
            assert await toy.ask("in|1|c") == b"ok|1|"
        before = written(node)
        await natives[0].say("publish", channel="c", data=[1, 2])
        for native in natives:
            assert await native.hear() == {"type": "publication", "channel": "c", "from": "n0", "data": [1, 2]}
        for toy in toys:
            assert await toy.hear() == b"#c|n0|[1, 2];"
        assert await toys[0].ask('pub|7|c|{"x":1}') == b'#c|t0|{"x":1};'
        assert await toys[0].hear() == b"ok|7|6"
        for native in natives:
            assert await native.hear() == {"type": "publication", "channel": "c", "from": "t0", "data": {"x": 1}}
        for toy in toys[1:]:
            assert await toy.hear() == b'#c|t0|{"x":1};'
        grown = [(after[0] - was[0], after[1] - was[1]) for after, was in zip(written(node), before, strict=True)]
        heads = b'{"type":"publication","channel":"c","from":"n0","data":[1, 2]}', b"#c|n0|[1, 2];"
        assert [publications for publications, _ in grown] == [2, 0, 2]
        assert grown[TOY_ENCODING][1] == sum(len(text) + 2 for text in (heads[1], b'#c|t0|{"x":1};'))
        assert grown[FRAMES_ENCODING][1] == sum(
            len(text) + 2 for text in (heads[0], b'{"type":"publication","channel":"c","from":"t0","data":{"x":1}}')
        )


async def test_an_encoding_without_members_is_not_written() -> None:
    async with node_of_two() as node:
        native, toy = await WireClient.login(node.url, "ann"), await ToyClient.login(node.url, "bob")
        await native.ask("join", channel="c")
        assert await toy.ask("pub|1|c|5") == b"ok|1|1"
        assert (await native.hear())["data"] == 5
        assert [publications for publications, _ in written(node)] == [1, 0, 0]
        await toy.say("in||c")
        await toy.ask("ping|1")
        assert (await native.ask("publish", channel="c", data=6))["subscribers"] == 2
        assert await toy.hear() == b"#c|ann|6;"
        await native.ask("leave", channel="c")
        assert await toy.ask("pub|2|c|7") == b"#c|bob|7;"
        assert await toy.hear() == b"ok|2|1"
        assert [publications for publications, _ in written(node)] == [2, 0, 2]


async def test_replies_errors_directs_and_broadcasts_are_in_its_own_form() -> None:
    async with node_of_two() as node:
        native, toy = await WireClient.login(node.url, "ann"), await ToyClient.login(node.url, "bob")
        other = await WireClient.login(node.url, "bob")
        assert await toy.ask("ping|3") == b"pong|3"
        assert await toy.ask("what|4") == b"no|4|104"
        assert await toy.ask("to|5|carl|1") == b"no|5|120"
        assert (await native.ask("direct", to="bob", data="hi"))["clients"] == 2
        assert await toy.hear() == b'@ann|"hi";'
        assert await other.hear() == {"type": "direct", "from": "ann", "data": "hi"}
        assert await toy.ask("to|6|ann|true") == b"ok|6|1"
        assert await native.hear() == {"type": "direct", "from": "bob", "data": True}
        await toy.say("all||0")
        assert await toy.hear() == b"*bob|0;"
        assert await native.hear() == {"type": "broadcast", "from": "bob", "data": 0}
        assert await other.hear() == {"type": "broadcast", "from": "bob", "data": 0}
        node.hub.push_to_user("bob", b"9")
        assert await toy.hear() == b"!9;"
        assert await other.hear() == {"type": "server", "data": 9}


async def test_an_end_has_its_own_bye_code_and_reason_and_operators_see_ours() -> None:
    async with node_of_two() as node:
        native, toy = await WireClient.login(node.url, "ann"), await ToyClient.login(node.url, "bob")
        await native.say("end", data="bob")
        assert await toy.hear() == b"bye|toy 4503"
        assert await toy.closed() == (3503, "toy 4503")
        assert node.acceptor.counts.closed[4503] == 1
        await native.say("end", data="ann")
        assert await native.closed() == (4503, "disconnected by the operator")


async def test_text_on_a_binary_protocol_ends_it() -> None:
    async with node_of_two() as node:
        toy = await ToyClient.login(node.url, "bob")
        await toy.socket.send("ping|1")
        assert await toy.hear() == b"bye|toy 1003"
        assert (await toy.closed())[0] == 3003


async def test_a_slow_consumer_is_evicted_with_its_codecs_code() -> None:
    async with node_of_two(evict_after_s=0.1, outbox_messages=8, send_buffer_bytes=4096) as node:
        native = await WireClient.login(node.url, "ann")
        toy = await ToyClient.login(node.url, "bob")
        await toy.ask("in|1|c")
        transport = toy.socket.transport
        transport.pause_reading()
        data = "x" * 8000

        async def flood() -> None:
            while node.connections == 2 and not node.acceptor.counts.closed[4008]:
                await native.ask("publish", channel="c", data=data)

        await asyncio.wait_for(flood(), 20)
        transport.resume_reading()
        with pytest.raises(ConnectionClosed) as end:
            while True:
                await toy.hear()
        assert end.value.rcvd is not None
        assert (end.value.rcvd.code, end.value.rcvd.reason) == (3008, "toy 4008")


async def test_a_node_without_the_codec_refuses_its_subprotocol() -> None:
    async with Node(Settings(port=0)) as node:
        with pytest.raises(Exception, match="400"):
            await ToyClient.login(node.url, "bob")
        await eventually(lambda: node.connections == 0)
