"""The client library against a real node in the same loop."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import starlight
from starlight.client.connect import Broadcast, ChannelPresence, Direct, Publication, Receipt, Server, connect
from starlight.errors import CloseConnection, LoginRefused, RequestFailed
from starlight.server.node import Node
from tests.support.fakes import eventually

WIRES = ("ws", "wss")

SUBPROTOCOLS = ["starlight.v1", "starlight.v1.lines"]
FAST = {"backoff_s": 0.01, "backoff_max_s": 0.05}


def application() -> starlight.Starlight:
    app = starlight.Starlight(port=0, drain_timeout_s=2)

    @app.on("bid")
    async def bid(client: Any, amount: int) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"user": client.user, "doubled": amount * 2}

    @app.on("fail")
    def fail(client: Any, data: object) -> None:
        raise ZeroDivisionError

    @app.on("end me")
    def end(client: Any, code: int) -> None:
        raise CloseConnection(code)

    @app.on("push me")
    def push(client: Any, data: object) -> int:
        return app.send(client.user, data)

    return app


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with application().serve() as running:
        yield running


@pytest.mark.parametrize("subprotocol", SUBPROTOCOLS)
async def test_every_kind_of_message(node: Node, subprotocol: str) -> None:
    async with (
        connect(node.url, user="ada", subprotocol=subprotocol) as ada,
        connect(node.url, user="bob", subprotocol=subprotocol) as bob,
        bob.join("news") as news,
    ):
        assert (ada.user, ada.node) == ("ada", node.hub.node)
        data = {"text": "é\n☃", "numbers": [1, 2.5, None, True]}
        assert await ada.publish("news", data) == Receipt(1, "node", None)
        assert await anext(news) == Publication("news", data, "ada")
        assert await ada.publish("news", None, ack=False) is None
        assert await anext(news) == Publication("news", None, "ada")
        assert await ada.direct("bob", data) == 1
        assert await anext(bob) == Direct(data, "ada")
        assert await ada.broadcast(b'{"as": "it is" }') == 2
        assert await anext(bob) == await anext(ada) == Broadcast({"as": "it is"}, "ada")
        assert await bob.request("push me", 5) == 1
        assert await anext(bob) == Server(5)
        assert await ada.request("bid", 21) == {"user": "ada", "doubled": 42}
        assert await ada.presence("news") == ChannelPresence(["bob"], 1)
        assert await ada.ping() > 0


async def test_errors_of_the_server(node: Node) -> None:
    async with connect(node.url, user="ada") as client:
        expected = {
            "not_connected": client.direct("nobody", 1),
            "bad_request": client.publish("no such name!", 1),
            "unknown_type": client.request("nothing"),
            "internal": client.request("fail"),
            "not_available": client.request("history"),
        }
        for name, request in expected.items():
            with pytest.raises(RequestFailed) as failed:
                await request
            assert failed.value.name == name
        await client.join("news")
        with pytest.raises(RequestFailed, match="already_joined"):
            await client.join("news")
        await client.leave("news")
        await client.leave("news")
        await client.join("news")
        with pytest.raises(TypeError):
            await client.publish("news", object())
        assert await client.ping() > 0


async def test_a_login_the_server_refuses(node: Node) -> None:
    with pytest.raises(LoginRefused) as refused:
        await connect(node.url, user="\0")
    assert refused.value.code == 4501


async def test_order_of_ten_thousand_in_one_channel(node: Node) -> None:
    async with (
        connect(node.url, user="ada") as ada,
        connect(node.url, user="bob", subprotocol="starlight.v1.lines", inbox_messages=20_000) as bob,
        bob.join("news") as news,
    ):
        for number in range(10_000):
            await ada.publish("news", number, ack=False)
        async with asyncio.timeout(30):
            assert [(await anext(news)).data for _ in range(10_000)] == list(range(10_000))


async def test_many_requests_at_once_wait_their_turn(node: Node) -> None:
    async with connect(node.url, user="ada", max_requests=10) as client:
        replies = await asyncio.gather(*(client.request("bid", number) for number in range(200)))
        assert [reply["doubled"] for reply in replies] == [number * 2 for number in range(200)]


async def test_publications_come_before_the_ok_of_their_sender(node: Node) -> None:
    async with connect(node.url, user="ada") as client, client.join("news") as news:
        await client.publish("news", 1)
        assert len(news.inbox) == 1


@pytest.mark.parametrize("code", [1011, 4008, 4011])
async def test_comes_back_to_a_node(node: Node, code: int) -> None:
    states: list[str] = []
    async with (
        connect(node.url, user="ada", on_state=lambda state, _: states.append(state), **FAST) as client,
        client.join("news") as news,
    ):
        await client._tell(b'{"type":"end me","data":%d}' % code)
        await eventually(lambda: len(states) > 1)
        await client.publish("news", "again")
        assert (await anext(news)).data == "again"
        assert states == ["connected", "reconnecting", "connected"]


async def test_comes_back_when_the_check_of_its_login_hangs_for_a_while() -> None:
    app, hangs, states = application(), False, []

    @app.on_login
    async def check(client: Any, login: dict[str, Any]) -> None:
        if hangs:
            await asyncio.Event().wait()

    async with (
        app.serve(login_timeout_s=0.1) as running,
        connect(running.url, user="ada", on_state=lambda *state: states.append(state), **FAST) as client,
    ):
        hangs = True
        await client._tell(b'{"type":"end me","data":4011}')
        await eventually(lambda: running.acceptor.counts.refused[1013] > 1)
        hangs = False
        await client.publish("news", "again")
        assert (states[1], states[2], states[-1]) == (
            ("reconnecting", 4011),
            ("reconnecting", 1013),
            ("connected", None),
        )


async def test_finds_the_next_node_after_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starlight.server.drain.RETRY_MIN_MS", 10)
    monkeypatch.setattr("starlight.server.drain.RETRY_MAX_MS", 50)
    states: list[tuple[str, int | None]] = []
    async with application().serve() as first:
        client = await connect(first.url, user="ada", on_state=lambda *state: states.append(state), **FAST)
        news = await client.join("news")
        port = first.port
    await eventually(lambda: len(states) > 1)
    assert states[1] == ("reconnecting", 1001)
    async with application().serve(port=port), client:
        await client.publish("news", "again")
        assert (await anext(news)).data == "again"


async def test_a_closed_client_is_gone_from_the_node(node: Node) -> None:
    async with connect(node.url, user="ada") as client:
        await client.join("news")
        assert node.connections == 1
    await eventually(lambda: node.connections == 0)
